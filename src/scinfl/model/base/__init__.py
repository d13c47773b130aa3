"""What all models share: keyed network, training over sites, files, registry."""
