"""Which classes of scvi-tools can be trained over sites, with which settings, and why others cannot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from inspect import Parameter, isclass, signature
from typing import Any

from scvi.module.base import BaseModuleClass

from scinfl._checks import first_of
from scinfl._names import GENES, PEAKS, PROTEINS
from scinfl._spelling import argument as named

_BATCHNORM = (
    "batch normalisation keeps means and variances of a site's hidden units, which no key folds; layer normalisation "
    "keeps none"
)
_LIBRARY = "a prior on library sizes is the mean and variance of the counts of each site, which would leave it"
_LATENT = "latent codes are read as means of a normal distribution"
_BACKGROUND = "a prior fitted on cells is the mean and scale of each site's background, which would leave it"
_CLASS_COUNTS = "weights of labels are counts of cells"
_PER_CELL = "it has parameters for single cells, which no mean over sites makes sense of"


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
    labels, unlabeled
        Whether it needs labels, and a name for cells without one.
    classifies
        Whether it learns to label cells.
    reads_site
        Whether its encoder reads the site where nobody asks for it.
    modalities, required
        Modalities that its features can be of and must be of; none where all are of one kind.
    is_mosaic
        Whether cells can lack a modality.
    refused
        Values of arguments that are refused, with the reason.
    n_epochs_kl_warmup
        Epochs until the KL divergence has its full weight in scvi-tools.
    """

    module: str = "scvi.model"
    forced: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    network: str = "VAE"
    labels: bool = False
    unlabeled: bool = False
    classifies: bool = False
    reads_site: bool = False
    modalities: Sequence[str] = ()
    required: Sequence[str] = ()
    is_mosaic: bool = False
    refused: Mapping[tuple[str, Any], str] = field(default_factory=dict)
    n_epochs_kl_warmup: int = 400


_PLAIN = {
    "use_batch_norm": ("none", _BATCHNORM),
    "use_layer_norm": ("both", _BATCHNORM),
    "latent_distribution": ("normal", _LATENT),
}
_COUNTS = {**_PLAIN, "use_observed_lib_size": (True, _LIBRARY)}
SUPPORTED = {
    "SCVI": Supported(forced=_COUNTS),
    "SCANVI": Supported(forced=_COUNTS, network="SCANVAE", labels=True, unlabeled=True, classifies=True),
    "LinearSCVI": Supported(
        forced={
            "use_batch_norm": (False, _BATCHNORM),
            "use_observed_lib_size": (True, _LIBRARY),
            "latent_distribution": ("normal", _LATENT),
        },
        network="LDVAE",
    ),
    "PEAKVI": Supported(forced=_PLAIN, network="PEAKVAE", n_epochs_kl_warmup=50),
    "POISSONVI": Supported("scvi.external", {"latent_distribution": ("normal", _LATENT)}, n_epochs_kl_warmup=50),
    "TOTALVI": Supported(
        forced={**_COUNTS, "empirical_protein_background_prior": (False, _BACKGROUND)},
        network="TOTALVAE",
        reads_site=True,
        modalities=(GENES, PROTEINS),
        required=(GENES, PROTEINS),
        n_epochs_kl_warmup=192,
    ),
    "MULTIVI": Supported(
        forced=_PLAIN,
        network="MULTIVAE",
        modalities=(GENES, PEAKS, PROTEINS),
        required=(GENES, PEAKS),
        is_mosaic=True,
        refused={("modality_weights", "cell"): _PER_CELL},
        n_epochs_kl_warmup=50,
    ),
    "CondSCVI": Supported(forced={"weight_obs": (False, _CLASS_COUNTS)}, network="VAEC", labels=True),
}
"""Classes by name that were looked through; others pass :func:`_generic` or are refused."""

_CELLS = "its prior is made of cells, which would be in the model and in every update"
_PYRO = "it is a Pyro model, whose parameters are in a global store and not in the network"
_N_CELLS = "its loss weighs a prior by the number of cells of one site, so that the prior would count once a site"
REFUSED = {
    "SysVI": _CELLS,
    "DestVI": _PER_CELL,
    "RESOLVI": f"{_PYRO}, and {_PER_CELL}",
    "GIMVI": "it trains on two data sets in turns, which no site has both of",
    "AUTOZI": _N_CELLS,
    "CellAssign": _N_CELLS,
    "AmortizedLDA": _PYRO,
    "Decipher": _PYRO,
    "MRVI": "its parameters belong to samples, whose numbers of cells it stores",
    "TorchMRVI": "its parameters belong to samples, whose numbers of cells it stores",
    "TOTALANVI": "its classifier and its adversary are trained in turns that no site can take alone",
    "SCAR": "its profile of ambient RNA is computed from the cells of a site",
}
"""Reasons by class name."""
_COVARIATES = "Other covariates than the site are not supported."
_ELSEWHERE = {
    "batch_key": "The site is the batch: name its column with `site_key`. " + _COVARIATES,
    "categorical_covariate_keys": _COVARIATES,
    "continuous_covariate_keys": _COVARIATES,
    "size_factor_key": "Library sizes are the observed ones: leave it out.",
    "protein_expression_obsm_key": "Put all modalities into one table with `scinfl.pp.join_modalities`.",
}
_SETUP = {"adata", "layer", "batch_key", "labels_key"}


def supported(name: str) -> Supported:
    """How a class of scvi-tools is trained over sites.

    Raises
    ------
    ValueError
        If it cannot be; the message gives the reason.
    """
    return SUPPORTED[name] if name in SUPPORTED else _generic(name, _found(name))


def class_of(name: str) -> Any:
    """Class of scvi-tools of this name.

    Raises
    ------
    ValueError
        If it cannot be trained over sites; the message gives the reason.
    """
    return getattr(import_module(supported(name).module), name)


def _found(name: str) -> Any:
    """A class that nobody looked through."""
    for module in ("scvi.model", "scvi.external"):
        kind = getattr(import_module(module), name, None) if name.isidentifier() else None
        if isclass(kind) and hasattr(kind, "setup_anndata"):
            return kind
    raise refusal(name, REFUSED.get(name, "scvi-tools has no such class"))


def _generic(name: str, kind: Any) -> Supported:
    """How a class is trained that nobody looked through, where it reads counts and sites alone.

    What its parameters depend on is found when the network is made (:meth:`Agreed.axes_by_site`).
    """
    network: Any = getattr(kind, "_module_cls", None)
    reason = REFUSED.get(name)
    if reason is None and network is None:
        reason = "scvi-tools names no network for it that could be looked at before it is made"
    if reason is None and not (isclass(network) and issubclass(network, BaseModuleClass)):
        reason = _PYRO
    if reason is None and "n_obs" in signature(network.loss).parameters:
        reason = _N_CELLS
    asked = [p.name for p in signature(kind.setup_anndata).parameters.values() if p.default is Parameter.empty]
    if reason is None and (more := sorted(set(asked) - _SETUP - {"kwargs"})):
        reason = f"its setup asks for {first_of(more)}, which no site can agree on here"
    if reason is not None:
        raise refusal(name, reason)
    known = {parameter for maker in (kind, network) for parameter in signature(maker).parameters}
    forced = {argument: own for argument, own in _COUNTS.items() if argument in known}
    return Supported(kind.__module__.rpartition(".")[0], forced, network.__name__)


def refusal(name: str, reason: str) -> ValueError:
    """What to raise for a class that cannot be trained over sites."""
    return ValueError(f"Expected a class like {sorted(SUPPORTED)}, found {name}: {reason}.")


def check_labels_named(name: str, *, labels_key: str | None, unlabeled_category: str | None) -> None:
    """Refuse a class that is trained on labels without them.

    Raises
    ------
    ValueError
        If they are not named, or the class cannot be trained over sites.
    """
    own = supported(name)
    needed = {"labels_key": own.labels and labels_key is None}
    needed["unlabeled_category"] = own.unlabeled and unlabeled_category is None
    if any(needed.values()):
        names = " and ".join(named(what) for what, is_missing in needed.items() if is_missing)
        msg = f"Expected {names} for {name}, found none. Name what is missing."
        raise ValueError(msg)


def checked_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a class, with those that a federation needs.

    Raises
    ------
    ValueError
        If the class cannot be trained over sites, or an argument is unknown, contradicts them, or cannot be saved.
    """
    own, kind = supported(name), class_of(name)
    network = getattr(import_module("scvi.module"), own.network, getattr(kind, "_module_cls", kind))
    known = {parameter for maker in (kind, network) for parameter in signature(maker).parameters}
    if unknown := sorted(set(arguments) - known):
        cure = _ELSEWHERE.get(unknown[0], "Correct the name.")
        msg = f"Expected arguments of {name} of scvi-tools, found {first_of(unknown)}. {cure}"
        raise ValueError(msg)
    for argument, (value, reason) in own.forced.items():
        if arguments.get(argument, value) != value:
            msg = f"Expected `{argument}={value!r}` in a federation, found {arguments[argument]!r}: {reason}."
            raise ValueError(msg)
    try:
        json.dumps(dict(arguments))
    except TypeError as error:
        msg = f"Expected arguments of {name} that a json document can hold, found others ({error})."
        raise ValueError(msg) from None
    for (argument, value), reason in own.refused.items():
        if arguments.get(argument) == value:
            msg = f"Expected another `{argument}` than {value!r} in a federation, found that: {reason}."
            raise ValueError(msg)
    usual = {"encode_covariates": False} if own.reads_site else {}
    return {**usual, **{argument: value for argument, (value, _) in own.forced.items()}, **arguments}
