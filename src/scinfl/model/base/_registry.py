"""Registries of scvi-tools: what a model was set up with (the only file that knows the private names of scvi-tools)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scvi.data._constants import (
    _ADATA_MINIFY_TYPE_UNS_KEY,
    _FIELD_REGISTRIES_KEY,
    _SETUP_ARGS_KEY,
    _STATE_REGISTRY_KEY,
    _SUMMARY_STATS_KEY,
)
from scvi.data._manager import AnnDataManagerValidationCheck

UNPAIRED = AnnDataManagerValidationCheck(check_fully_paired_mudata=False)
"""For modalities that measured different spots."""

_ARRAYS = ("categorical_mapping", "column_names")


def is_minified(adata: Any) -> bool:
    """Whether scvi-tools put latent codes in place of the counts."""
    return _ADATA_MINIFY_TYPE_UNS_KEY in adata.uns


def state_of(registry: Mapping[str, Any], field: str) -> dict[str, Any]:
    """What a field of a registry holds."""
    return registry[_FIELD_REGISTRIES_KEY][field][_STATE_REGISTRY_KEY]


def setup_of(registry: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the setup."""
    return registry[_SETUP_ARGS_KEY]


def features_of(registry: Mapping[str, Any]) -> dict[str, pd.Index]:
    """Names of features by field."""
    states = {name: state_of(registry, name) for name in registry[_FIELD_REGISTRIES_KEY]}
    return {name: pd.Index(state["column_names"]) for name, state in states.items() if "column_names" in state}


def categories_of(registry: Mapping[str, Any] | None, field: str) -> list[str] | None:
    """Categories of a field as text; ``None`` without a registry."""
    if registry is None:
        return None
    return list(map(str, state_of(registry, field)["categorical_mapping"]))


def without_counts(registry: Mapping[str, Any]) -> dict[str, Any]:
    """Registry as it is saved: without how many cells there were to train on."""
    fields = {
        name: {**field, _SUMMARY_STATS_KEY: {k: v for k, v in field[_SUMMARY_STATS_KEY].items() if k != "n_cells"}}
        for name, field in registry[_FIELD_REGISTRIES_KEY].items()
    }
    return {**registry, _FIELD_REGISTRIES_KEY: fields}


def with_arrays(registry: Any) -> Any:
    """Registry as scvi-tools wants it: some lists are arrays."""
    if isinstance(registry, dict):
        return {
            name: np.array(value, dtype=object) if name in _ARRAYS else with_arrays(value)
            for name, value in registry.items()
        }
    return registry
