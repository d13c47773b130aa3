"""What protects: the secret key."""

from scinfl.privacy._key import Key

__all__ = ["Key"]
