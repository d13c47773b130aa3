"""Which classes of scvi-tools can be trained over sites, with which settings, and why others cannot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from typing import Any

from scinfl._checks import first_of

_BATCHNORM = (
    "batch normalisation keeps means and variances of a site's hidden units, which no key folds; layer normalisation "
    "keeps none"
)
_LIBRARY = "a prior on library sizes is the mean and variance of the counts of each site, which would leave it"
_SITES = "a parameter for each gene and site has no owner among the sites; use one for each gene"
_NO_FIXED_SHAPE = "its parameters for a site are not columns of linear layers, which the sites could own one by one"
_LATENT = "latent codes are read as means of a normal distribution"


@dataclass(frozen=True)
class Supported:
    """How a class is trained over sites.

    Parameters
    ----------
    module
        Where it is imported from.
    forced
        Arguments that are set, with the reason.
    network
        Its network, whose arguments it takes too.
    labels
        Whether it is trained on labels.
    """

    module: str = "scvi.model"
    forced: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    network: str = "VAE"
    labels: bool = False


_PLAIN = {
    "use_batch_norm": ("none", _BATCHNORM),
    "use_layer_norm": ("both", _BATCHNORM),
}
_COUNTS = {
    **_PLAIN,
    "use_observed_lib_size": (True, _LIBRARY),
    "latent_distribution": ("normal", _LATENT),
    "batch_representation": ("one-hot", _NO_FIXED_SHAPE),
}
SUPPORTED = {
    "SCVI": Supported(forced=_COUNTS),
    "SCANVI": Supported(forced=_COUNTS, network="SCANVAE", labels=True),
    "LinearSCVI": Supported(
        forced={
            "use_batch_norm": (False, _BATCHNORM),
            "use_observed_lib_size": (True, _LIBRARY),
            "latent_distribution": ("normal", _LATENT),
        },
        network="LDVAE",
    ),
    "PEAKVI": Supported(forced={**_PLAIN, "latent_distribution": ("normal", _LATENT)}, network="PEAKVAE"),
    "POISSONVI": Supported("scvi.external", {"latent_distribution": ("normal", _LATENT)}),
}
"""Classes by name."""

_CELLS = "its prior is made of cells or of clusters of few cells, which would be in the model and in every update"
_PER_CELL = "it has parameters for single cells, which no mean over sites makes sense of"
_PYRO = "it is a Pyro model, whose parameters are in a global store and not in the network"
_ADVERSARY = (
    "its adversarial classifier has to distinguish sites, of which each site sees one, and its prior on the background "
    "of proteins is fitted on cells of each site"
)
_N_CELLS = "its loss weighs a prior by the number of cells of one site, so that the prior would count once a site"
REFUSED = {
    "TOTALVI": _ADVERSARY,
    "MULTIVI": f"{_ADVERSARY}; with `modality_weights='cell'` {_PER_CELL}",
    "SysVI": _CELLS,
    "CondSCVI": _CELLS,
    "DestVI": _PER_CELL,
    "RESOLVI": f"{_PYRO}, and {_PER_CELL}",
    "GIMVI": "it trains on two data sets in turns, which no site has both of",
    "AUTOZI": _N_CELLS,
    "CellAssign": _N_CELLS,
    "AmortizedLDA": _PYRO,
    "Decipher": _PYRO,
    "MRVI": "its parameters belong to samples, whose numbers of cells it stores",
}
"""Reasons by class name."""


def class_of(name: str) -> type:
    """Class of scvi-tools of this name.

    Raises
    ------
    ValueError
        If it cannot be trained over sites; the message gives the reason.
    """
    if name not in SUPPORTED:
        reason = REFUSED.get(name, "nothing is known of its parameters and of what it computes from cells")
        msg = f"Expected one of {sorted(SUPPORTED)}, found {name}: {reason}."
        raise ValueError(msg)
    return getattr(import_module(SUPPORTED[name].module), name)


def check_labels_named(name: str, *, labels_key: str | None, unlabeled_category: str | None) -> None:
    """Refuse a class that is trained on labels without them.

    Raises
    ------
    ValueError
        If they are not named, or the class cannot be trained over sites.
    """
    class_of(name)
    if SUPPORTED[name].labels and (labels_key is None or unlabeled_category is None):
        msg = f"Expected `labels_key` and `unlabeled_category` for {name}, found none. Name both."
        raise ValueError(msg)


def checked_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a class, with those that a federation needs.

    Raises
    ------
    ValueError
        If the class cannot be trained over sites, or an argument is unknown, contradicts them, or cannot be saved.
    """
    kind, forced = class_of(name), SUPPORTED[name].forced
    makers = [kind, getattr(import_module("scvi.module"), SUPPORTED[name].network)]
    known = {parameter for maker in makers for parameter in signature(maker).parameters}
    if unknown := sorted(set(arguments) - known):
        msg = f"Expected arguments of {name} of scvi-tools, found {first_of(unknown)}. Correct the name."
        raise ValueError(msg)
    for argument, (value, reason) in forced.items():
        if arguments.get(argument, value) != value:
            msg = f"Expected `{argument}={value!r}` in a federation, found {arguments[argument]!r}: {reason}."
            raise ValueError(msg)
    if arguments.get("dispersion") == "gene-batch":
        msg = f"Expected `dispersion` of 'gene', 'gene-label' or 'gene-cell', found 'gene-batch': {_SITES}."
        raise ValueError(msg)
    try:
        json.dumps(dict(arguments))
    except TypeError as error:
        msg = f"Expected arguments of {name} that a json document can hold, found others ({error})."
        raise ValueError(msg) from None
    return {**{argument: value for argument, (value, _) in forced.items()}, **arguments}
