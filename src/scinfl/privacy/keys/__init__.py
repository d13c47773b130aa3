"""The secret key and its life: versions, identities, rotation, sealed files."""
