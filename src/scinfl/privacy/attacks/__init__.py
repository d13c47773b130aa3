"""Attackers: plain functions over a network and what was sent."""

from scinfl.privacy.attacks._without_key import removed_modules, wrong_keys

__all__ = ["removed_modules", "wrong_keys"]
