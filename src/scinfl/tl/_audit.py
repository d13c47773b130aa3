"""Attack a trained model by adversaries that know how it works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anndata import AnnData
from mudata import MuData

from scinfl import _names
from scinfl._audit import Request, run_audit
from scinfl.model import GEARS, Classifier, ScviModel, SpaMosaic
from scinfl.privacy import Key


def audit(
    adata: AnnData | MuData,
    model: Classifier | GEARS | SpaMosaic | ScviModel,
    *,
    held_out: AnnData | MuData | None = None,
    key: Key | None = None,
    train: Mapping[str, Any] | None = None,
    attributes: Sequence[str] = (),
    quick: bool = False,
    rng: int = 0,
    progress: bool = True,
) -> None:
    """Attack a trained model and what its sites send, and report what each adversary learns.

    Every score has a baseline without access to the model: the mean or a public cell, training from scratch on the same
    samples, an untrained network, chance. Attackers know how the method works, have public data of the same kind, and
    keep their best checkpoint.

    Cells, perturbations or sections that took no part in training are needed, half of them for the attackers and half
    to judge by. Give them as ``held_out`` and the model itself is attacked. Without, two fifths of the groups of
    ``adata`` (of a :class:`~scinfl.model.GEARS` those of the test part of its split, or of the perturbations; of a
    :class:`~scinfl.model.SpaMosaic` at least one section) are held out and a twin of the model is trained on the rest,
    with the same settings and key: what is true of it is true of models made like this one. Updates are simulated.

    For a classifier, attacks reconstruct cells and properties of sites from updates, steal the model, infer membership
    in the training data, and craft weights. For a model of perturbations they infer which perturbations a site has and
    their mean changes, and for a model of tissue they reconstruct spots; for both they steal the model and infer
    membership. Of a model of scvi-tools they use encoder and decoder without the key, train the stolen network on
    unlabelled cells, and infer which cells it was trained on; two fifths of the cells are held out for its twin.

    Sets the following fields:

    ``.uns["infl"]["audit"]["table"]``
        Data frame with one row per finding: ``family``, ``adversary``, ``uploads`` (``"in the open"`` or ``"keyed
        sums"``), ``attack``, ``setting``, ``metric``, ``score`` with a 95 % interval (``low``, ``high``; of model
        stealing and wrong keys the range), ``baseline``, ``baseline_name`` and ``verdict``: ``"leaks"`` (the interval
        is above the baseline), ``"holds"``, ``"unclear"`` or ``"insufficient data"`` (too few cells).
    ``.uns["infl"]["audit"]["verdicts"]``
        What each adversary learns, in words.
    ``.uns["infl"]["audit"]["parameters"]``
        Settings and seeds that repeat it.
    ``.uns["infl"]["audit"]["not_tested"]``
        What this audit leaves open.

    Parameters
    ----------
    adata
        Data that the model was trained on, with all columns that it needs.
    model
        Trained model.
    held_out
        Cells with labels, perturbations with control cells, or whole sections, that took no part in training.
    key
        The model's key. Needed where it was trained with one; the audit simulates attackers with and without it.
    train
        Arguments of ``model.train`` that the model was trained with, for the twin, the updates and the shadow networks;
        by default as many rounds as the model had, and the defaults. Protections with a budget must be new objects.
    attributes
        Columns of ``adata.obs`` that somebody might want to infer of a person, or their shares of a site, such as sex.
        Of spots, labels that model stealing predicts, such as domains; of a model of scvi-tools, labels that its codes
        transfer. GEARS takes none.
    quick
        A tenth of the effort: fewer trials, no shadow networks.
    rng
        Seed of all attacks.
    progress
        Show a progress bar.

    Raises
    ------
    TypeError
        If the model is of another kind.
    ValueError
        If the model, its key or the data cannot be used; before any attack.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> si.pp.split_sites(adata, n_sites=3, by="bulk_labels", rng=0)
    >>> si.model.Classifier.setup_anndata(adata, labels_key="bulk_labels", site_key="site")
    >>> model = si.model.Classifier(adata, n_hidden=16, key_scheme=None)
    >>> model.train(n_rounds=2, progress=False)
    >>> si.tl.audit(adata, model, train={"n_rounds": 2}, quick=True, progress=False)
    >>> sorted(adata.uns["infl"]["audit"])
    ['not_tested', 'parameters', 'table', 'verdicts']
    """
    request = Request(adata, model, held_out, key, train or {}, attributes, quick, rng)
    adata.uns.setdefault(_names.UNS, {})["audit"] = run_audit(request, progress=progress)
