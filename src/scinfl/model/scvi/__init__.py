"""Models of scvi-tools, federated and keyed."""

from scinfl.model.scvi._classes import SUPPORTED, class_of

__all__ = ["SUPPORTED", "class_of"]
