"""Models of scvi-tools, federated and keyed."""
