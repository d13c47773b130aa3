"""Attackers: plain functions over a network and what was sent."""

from scinfl.privacy.attacks._server import Watcher, match_features
from scinfl.privacy.attacks._thief import fine_tune, fit_key, fit_scales, train_from_scratch
from scinfl.privacy.attacks._without_key import matched_statistics, removed_modules, wrong_keys

__all__ = [
    "Watcher",
    "fine_tune",
    "fit_key",
    "fit_scales",
    "match_features",
    "matched_statistics",
    "removed_modules",
    "train_from_scratch",
    "wrong_keys",
]
