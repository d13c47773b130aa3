"""Predict how cells respond to perturbations of genes, with one network trained over sites."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.data.fields import LayerField

from scinfl import _names
from scinfl import nn as keyed_nn
from scinfl._checks import (
    finite,
    first_of,
    looks_like_counts,
    number_between,
    obs_column,
    one_of,
    same_features,
    whole_number,
)
from scinfl._conditions import CONTROL
from scinfl.federation import FedAvg, Journal, Protection, Run, State, Strategy
from scinfl.model.base._cells import Matrix, owned, sites_of, values_of
from scinfl.model.base._local_training import LocalTraining, check_run
from scinfl.model.base._model import resolve_device
from scinfl.model.base._noise_checks import check_noise_of_perturbations
from scinfl.model.gears._cell_gears import read_cell_gears
from scinfl.model.gears._coexpression import strongest_edges
from scinfl.model.gears._conditions import AgreedConditions
from scinfl.model.gears._data import (
    TRAIN,
    VALIDATION,
    Condition,
    ConditionBatches,
    Design,
    SiteCells,
    check_conditions,
    check_genes,
    condition_names,
)
from scinfl.model.gears._graphs import Edges, Ontology, Vocabulary
from scinfl.model.gears._moments import Moments
from scinfl.model.gears._prediction import EVERYWHERE, PerturbationPredictor
from scinfl.model.gears._prior import PRIORS, Prior, pack_priors, unpack_priors
from scinfl.model.gears._private import alone, check_private, released
from scinfl.model.gears._shrinkage import ORDERS, order_of, shrunk
from scinfl.model.gears._sums import (
    own_second_moments,
    pooled_changes,
    pooled_second_moments,
    shares_of,
    warn_of_few,
)
from scinfl.module import Conditions, GEARSModule
from scinfl.privacy import Key, Seal
from scinfl.privacy.aggregation._default_protections import default_protections
from scinfl.privacy.dp._noisy_sums import Released
from scinfl.privacy.dp._sample_dp import SampleDP

logger = logging.getLogger(__name__)


class GEARS(PerturbationPredictor):
    """Predict the response to single and combined perturbations of genes, seen and unseen, trained over sites.

    The network of GEARS (Roohani, Huang & Leskovec 2024): it knows which genes are alike, by a gene ontology and by
    co-expression, and predicts the mean change that a set of perturbed genes makes to every gene. It is trained on
    moments of the cells of each condition, which replace the cells exactly (see
    :func:`scinfl.module.change_loss`), so that an epoch costs conditions × genes, however many cells there are.

    Parameters
    ----------
    adata
        Data that went through :meth:`setup_anndata`.
    gene_ontology
        How alike perturbed genes are: a table with the columns ``source``, ``target``, ``importance`` (or a csv file of
        them), or the terms of each gene (mapping, tsv or gmt file), compared by Jaccard index above 0.1. Without it
        perturbed genes are compared by their co-expression, and a warning says so.
    n_hidden
        Size of the embeddings.
    n_ontology_layers, n_coexpression_layers
        Propagations over each graph.
    n_neighbours
        Strongest neighbours of a gene that are kept, beside itself.
    coexpression_threshold
        Least size of a correlation that makes an edge.
    prior
        Baseline whose residual the network learns: ``"additive"`` (sum of the single changes), ``"mean"`` or ``None``,
        as published. The network's part is shrunk to what helps on validation conditions.
    uncertainty
        ``"gaussian"`` predicts a standard deviation of single cells; ``"published"`` is the term of the original.
    perturbation_genes
        Further genes whose perturbation may be predicted.
    covariate_levels
        Further levels of covariates, by covariate, that other sites have.
    compat
        Compute exactly what the published network computes: co-expression reaches the first condition of a batch only.
    key_scheme
        Form of the keyed modules: ``"coordinate"``, which keys embeddings and gene-specific read-outs as well;
        ``None`` is the plain network. The published forms ``"permuted"`` and ``"pooled"`` are for comparison.
    train_meta
        Train the read-out of the meta learners, which ``share="meta"`` needs.
    rng
        Seed of the initial parameters.
    facts
        What a saved model says of itself; given by :meth:`load`.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.perturbseq_simulated(100, n_singles=12, n_doubles=8, n_cells=20)
    >>> si.model.GEARS.setup_anndata(adata, condition_key="condition")
    >>> model = si.model.GEARS(adata, gene_ontology=adata.uns["gene_terms"])
    >>> model.train(n_rounds=2, key=si.privacy.Key.generate(), progress=False)
    >>> genes = list(adata.uns["gene_terms"])
    >>> model.predict([genes[0], f"{genes[0]}+{genes[1]}"]).shape
    (2, 100)
    """

    module: GEARSModule
    _columns_to_train = ("condition_key", "site_key")

    def __init__(
        self,
        adata: AnnData | None = None,
        *,
        gene_ontology: Ontology | None = None,
        n_hidden: int = 64,
        n_ontology_layers: int = 1,
        n_coexpression_layers: int = 1,
        n_neighbours: int = 20,
        coexpression_threshold: float = 0.4,
        prior: Literal["additive", "mean"] | None = "additive",
        uncertainty: Literal["gaussian", "published"] | None = None,
        perturbation_genes: Sequence[str] = (),
        covariate_levels: Mapping[str, Sequence[str]] | None = None,
        compat: bool = False,
        key_scheme: str | None = "coordinate",
        train_meta: bool = False,
        rng: int = 0,
        registry: dict | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        for name, number in (
            ("n_hidden", n_hidden),
            ("n_ontology_layers", n_ontology_layers),
            ("n_coexpression_layers", n_coexpression_layers),
            ("n_neighbours", n_neighbours),
        ):
            whole_number(name, number, 1)
        number_between("coexpression_threshold", coexpression_threshold, 0, 1)
        one_of("prior", prior, PRIORS)
        one_of("uncertainty", uncertainty, ["gaussian", "published", None])
        self._network_options: dict[str, Any] = {
            "n_hidden": n_hidden,
            "n_ontology_layers": n_ontology_layers,
            "n_coexpression_layers": n_coexpression_layers,
            "uncertainty": uncertainty,
            "compat": compat,
        }
        self._prior_kind = prior
        self._edges_of = partial(strongest_edges, n_neighbours=n_neighbours, threshold=coexpression_threshold)
        self._given: dict[str, Any] = {
            "source": gene_ontology,
            "further": list(perturbation_genes),
            "n_neighbours": n_neighbours,
            "levels": covariate_levels,
        }
        self._stored = dict(facts) if facts else None
        self._ontology: Edges | None = None
        self._coexpression: dict[str, Edges] = {}
        self._priors: dict[str, Prior] = {}
        self._sealed_priors: bytes | None = None
        self._agreed: list[Condition] | None = None
        self._loss: str | None = None
        self._statistics_stored = bool(facts and facts["statistics_stored"])
        super().__init__(adata, key_scheme=key_scheme, train_meta=train_meta, rng=rng, registry=registry)
        self._given = {}
        self.init_params_ = self._get_init_params(
            {**locals(), "gene_ontology": None, "facts": None, "perturbation_genes": list(perturbation_genes)}
        )

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        condition_key: str = "condition",
        *,
        control: str = CONTROL,
        site_key: str | None = None,
        layer: str | None = None,
        gene_key: str | None = None,
        split_key: str | None = _names.SPLIT,
        covariate_keys: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        """Tell the model where perturbations, sites and values are.

        Parameters
        ----------
        adata
            Cells × genes, on a log scale.
        condition_key
            Column of ``adata.obs`` with the perturbed genes: ``"ctrl"``, ``"A+ctrl"``, ``"A"``, ``"A+B"``, ``"A+B+C"``.
            Order does not matter.
        control
            Name of the control condition.
        site_key
            Column of ``adata.obs`` with the site; ``None`` trains one site with all cells (pooled). Every site needs
            control cells of its own.
        layer
            Layer to use instead of ``adata.X``.
        gene_key
            Column of ``adata.var`` with the names of genes, where ``adata.var_names`` are ids.
        split_key
            Column of ``adata.obs`` with ``"train"``, ``"val"`` and ``"test"``
            (:func:`scinfl.pp.split_perturbations`); where there is no such column all perturbations are trained on.
        covariate_keys
            Columns of ``adata.obs`` (cell type, dose) whose levels shift the response; controls are those of the same
            levels.
        kwargs
            ``source_registry`` of another data set.

        Raises
        ------
        KeyError
            If a column or layer does not exist.
        ValueError
            If controls are missing, a perturbation has a single cell, genes are zero in all cells, or values cannot be
            used; the message names what and the cure.
        """
        covariate_keys = list(covariate_keys)
        setup_args = cls._get_setup_method_args(**{k: v for k, v in locals().items() if k != "kwargs"})
        owned(adata)
        matrix = values_of(adata, layer)
        finite(matrix, adata.var_names)
        if looks_like_counts(matrix):
            warnings.warn(
                "Expected values on a log scale, found what looks like raw counts. Run `sc.pp.normalize_total(adata)` "
                "and `sc.pp.log1p(adata)` first.",
                UserWarning,
                stacklevel=2,
            )
        check_genes(adata, matrix, gene_key, zeros="source_registry" not in kwargs)  # other sites may express them
        check_conditions(condition_names(adata, condition_key, control), control, condition_key)
        sites_of(adata, site_key)
        for key in covariate_keys:
            obs_column(adata, key, "covariate_keys")
        manager = AnnDataManager(
            fields=[LayerField("X", layer, is_count_data=False, correct_data_format=False)],
            setup_method_args=setup_args,
        )
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    # ---- what it knows of genes

    @property
    def genes(self) -> list[str]:
        """Names of the measured genes, in order."""
        return self._genes

    @property
    def perturbation_genes(self) -> list[str]:
        """Genes whose perturbation can be predicted."""
        return self._vocabulary

    @property
    def loss(self) -> str | None:
        """Loss that the network was trained with."""
        return self._loss

    @property
    def shrinkage(self) -> dict[str, float] | None:
        """Share of the network's change that is added to the prior, by number of perturbed genes."""
        priors = list(self._priors.values())
        return dict(priors[0].shrinkage) if priors else None

    def _make_module(self) -> GEARSModule:
        if self._stored is not None:
            self._genes, self._vocabulary = list(self._stored["genes"]), list(self._stored["vocabulary"])
            self._levels = {name: list(levels) for name, levels in self._stored["covariates"].items()}
            agreed = self._stored["agreed"]
            self._agreed = agreed and [Condition(tuple(genes), tuple(codes)) for genes, codes in agreed]
            self._loss = self._stored["loss"]
        else:
            if self._adata is None:
                msg = "Expected data that went through `GEARS.setup_anndata`, found none. Pass `adata`."
                raise ValueError(msg)
            known = Vocabulary.of(self._adata, self._setup_args(), **self._given)
            self._genes, self._vocabulary, self._levels = known.genes, known.perturbations, known.levels
            self._ontology = known.ontology
        self._rows = {gene: row for row, gene in enumerate(self._vocabulary)}
        return GEARSModule(self._genes, self._vocabulary, covariates=self._levels, **self._network_options)

    # ---- training

    def train(
        self,
        n_rounds: int = 40,
        *,
        key: Key | None = None,
        local_epochs: int = 3,
        lr: float = 3e-3,
        batch_size: int = 16,
        weight_decay: float = 5e-4,
        loss: Literal["squared", "quartic", "auto"] = "auto",
        direction_weight: float = 0.0,
        uncertainty_weight: float = 1.0,
        share: str | Sequence[str] = "all",
        strategy: Strategy | None = None,
        protections: Sequence[Protection] | Literal["default"] = "default",
        fraction: float = 1.0,
        min_sites: int = 1,
        min_cells: int = 2,
        validation_size: float = 0.1,
        smoothing: float = 0.0,
        monitor: str = "validation_mse_de",
        early_stopping: int | None = None,
        rng: int = 0,
        device: str = "auto",
        progress: bool = True,
        journal: str | os.PathLike[str] | None = None,
        dry_run: bool = False,
    ) -> None:
        """Train over the sites; call it again to go on.

        Before the first round the sites agree, by sums that the server cannot read where there is a key, on one
        co-expression graph and on the mean changes that the prior is made of. The model keeps the round that is best
        on the sites' validation conditions, and shrinks the network's part to what helps there.

        Parameters
        ----------
        n_rounds
            Rounds of local training and averaging.
        key
            Secret of the sites. Without it the model is federated but not keyed.
        local_epochs, lr, batch_size, weight_decay
            Local training by Adam, started anew each round, over the conditions of the site; gradients are clipped at 1
            as published, and the learning rate falls to zero over the rounds along a cosine.
        loss
            ``"quartic"`` as published, ``"squared"``, or ``"auto"``: train with both, keep what is better on validation
            conditions.
        direction_weight
            Weight of a term for the direction of the change (the published one has no gradient).
        uncertainty_weight
            Weight of the published uncertainty term.
        share
            What leaves a site: ``"all"`` trained parameters; ``"meta"`` only the meta learners, so that every site
            keeps a model, a graph and a prior of its own; or a list of layer names.
        strategy
            How updates become the next state; :class:`~scinfl.federation.FedAvg` by default. A site weighs as much as
            it has conditions.
        protections
            What guards the updates and the sums, in order. ``"default"`` is a :class:`~scinfl.privacy.KeyedSum` where
            there is a key and more than one site. ``()`` sends them in the open.
        fraction, min_sites
            Share and least number of the sites that take part in a round.
        min_cells
            A perturbation with fewer cells at a site is left out there, with a warning.
        validation_size
            Share of the training perturbations set aside to choose the best round, where the split has none; 0 keeps
            the last round and does not shrink.
        smoothing
            Weight of the past in the moving average of shared states that is validated and kept.
        monitor
            Column of ``history`` that tells the best round.
        early_stopping
            Stop after so many rounds without a better value of ``monitor``.
        rng
            Seed of validation conditions, site choice and batches.
        device
            ``"auto"``, ``"cpu"`` or ``"cuda:0"``.
        progress
            Show a progress bar with round, loss and monitored value.
        journal
            Folder for a checkpoint after every round and an audit log. If it holds this run, the run is resumed.
        dry_run
            Train nothing and send nothing: list in :attr:`payload` what would leave each site, from one local epoch of
            each. The model stays as it is.

        Raises
        ------
        ValueError
            If an argument, the key or the data cannot be used; before any training.
        """
        if dry_run:
            self._rehearse(locals())
            return
        payload = self._open_payload()
        check_run(
            n_rounds=n_rounds,
            local_epochs=local_epochs,
            lr=lr,
            weight_decay=weight_decay,
            batch_size=batch_size,
            validation_size=validation_size,
            smoothing=smoothing,
            early_stopping=early_stopping,
            rng=rng,
        )
        whole_number("batch_size", batch_size, 2)
        whole_number("min_cells", min_cells, 1)
        number_between("direction_weight", direction_weight, 0, 1e6)
        number_between("uncertainty_weight", uncertainty_weight, 0, 1e6)
        one_of("loss", loss, ["squared", "quartic", "auto"])
        one_of("monitor", monitor, [f"validation_{name}" for name in ("mse_de", "mse", "pearson_delta")])
        if self._adata is None or self._adata_manager is None:
            msg = "Expected data with perturbations to train on, found none. Load the model with such data."
            raise ValueError(msg)
        design, agreed = self._design(validation_size, rng)
        matrix = self._matrix(self._adata)
        sites = {name: SiteCells.of(design, TRAIN, name, min_cells) for name in sorted(set(design.site))}
        sites = {name: cells for name, cells in sites.items() if any(c.genes for c in cells.conditions)}
        if not sites:
            msg = "Expected perturbations to train on, found none. Look at the split, or lower `min_cells`."
            raise ValueError(msg)
        held_out = {name: SiteCells.of(design, VALIDATION, name, min_cells) for name in sites}
        warn_of_few({name: sites[name].n_left_out + held_out[name].n_left_out for name in sites}, min_cells)
        if protections == "default":
            protections = default_protections(key, len(sites), stacklevel=3)
        self._check_share(share, key)
        check_noise_of_perturbations(protections, local=share == "meta")
        private = next((protection for protection in protections if isinstance(protection, SampleDP)), None)
        if private is not None:
            check_private(private, loss, self.uncertainty, self._ontology, sites)
            log = None if journal is None else Journal(journal, None if key is None else Seal(key))
            private.open_account(n_sites=len(sites), n_rounds=n_rounds, journal=log)
            sites, held_out = released(private, matrix, sites, held_out, spend=not self._is_rehearsal)
            protections, loss = [Released(p) if p is private else p for p in protections], "squared"
        moments = {name: cells.moments(matrix) for name, cells in sites.items()}
        agreed = agreed or AgreedConditions.of_cells(sites, held_out)
        validated = agreed.validated
        self.module.n_validated, self._agreed = len(validated), agreed.train
        self._agree(matrix, sites, moments, protections, local=share == "meta", looks_at_cells=private is None)
        summing = protections if share != "meta" else None
        shares = shares_of(sites, summing, "training cells", payload, conditions=agreed.train)
        held_shares = shares_of(held_out, summing, "validation cells", payload, conditions=validated)
        target = resolve_device(device)
        batches = partial(self._batches, device=target, local=share == "meta")
        data = {
            name: (
                batches(name, cells, moments[name], shares[name], agreed.train, leave_out=True),
                batches(name, aside, aside.moments(matrix), held_shares[name], validated, leave_out=False),
            )
            for (name, cells), aside in zip(sites.items(), held_out.values(), strict=True)
        }
        options = {"direction_weight": direction_weight, "uncertainty_weight": uncertainty_weight}
        run = partial(
            self._federate,
            data,
            LocalTraining(
                local_epochs, batch_size, lr, weight_decay, rng, optimizer="adam", clip_value=1.0, decay_rounds=n_rounds
            ),
            key=key,
            strategy=strategy or FedAvg(),
            protections=protections,
            n_rounds=n_rounds,
            share=share,
            device=device,
            prepare={name: partial(self._put_graphs, site=name) for name in sites} if share == "meta" else None,
            fraction=fraction,
            min_sites=min_sites,
            smoothing=smoothing,
            monitor=monitor,
            patience=early_stopping,
            progress=progress,
            derive=partial(shrunk, prior=self._prior_kind, orders=[order_of(c.genes) for c in validated]),
        )
        self._train_with(run, loss, options, list(data), monitor, journal)
        self._finish_prior(key)

    def _design(self, validation_size: float, rng: int) -> tuple[Design, AgreedConditions | None]:
        """Cells and their parts; with what other sites agreed on where they are elsewhere."""
        design = Design.of(self._adata, self._setup_args(), self._levels)
        if self._seat is not None:
            agreed = AgreedConditions.of_facts(self._seat.facts, self._levels, validation_size, rng)
            return design.at(self._seat.site).set_aside(agreed.aside), agreed
        return design.with_validation(validation_size, rng), None

    def _train_with(
        self,
        run: Any,
        loss: str,
        options: dict[str, float],
        sites: list[str],
        monitor: str,
        journal: str | os.PathLike[str] | None,
    ) -> None:
        """Train with one loss, or with both and keep the better one."""
        if loss == "auto" and self.uncertainty == "gaussian":
            loss = "squared"  # it stands in both
        if loss == "auto" and self._loss is not None:
            loss = self._loss  # the choice was made
        losses = ["squared", "quartic"] if loss == "auto" else [loss]
        start, kept = self._trained_parts(), []
        for name in losses:
            self._take_trained_parts(start)
            folder = journal if journal is None or len(losses) == 1 else Path(journal) / name
            run(loss_options={site: {"loss": name, **options} for site in sites}, journal=folder)
            kept.append((self._best_value(monitor), name, self._trained_parts()))
        _, self._loss, parts = min(kept, key=lambda entry: entry[0])
        if len(losses) > 1:
            self._take_trained_parts(parts)
            logger.info("Kept the %s loss, which is better on validation conditions.", self._loss)

    def _best_value(self, monitor: str) -> float:
        """Best monitored value of the last run, smaller is better; 0 where nothing was monitored."""
        history = self.history
        if history is None or monitor not in history:
            return 0.0
        return float(history[monitor].min() if "mse" in monitor else -history[monitor].max())

    def _trained_parts(self) -> dict[str, Any]:
        names = ("module", "_locked_with", "_history", "_site_history", "_local_states", "is_trained_", "_share")
        return {name: copy.copy(self.__dict__.get(name)) if name != "module" else self.module for name in names}

    def _take_trained_parts(self, parts: dict[str, Any]) -> None:
        """Go back to a state of training, so that another loss starts where the first one did."""
        self.__dict__.update({name: value for name, value in parts.items() if name != "module"})
        has_key = all(layer.is_set for layer in keyed_nn.keyed_layers(parts["module"]).values())
        self.module = copy.deepcopy(parts["module"])
        if has_key and self._key is not None and self._locked_with is not None:
            keyed_nn.set_key(self.module, self._key.coordinates)

    def _agree(
        self,
        matrix: Matrix,
        sites: Mapping[str, SiteCells],
        moments: Mapping[str, Moments],
        protections: Sequence[Protection],
        *,
        local: bool,
        looks_at_cells: bool,
    ) -> None:
        """Co-expression graph and prior of all sites; with ``local`` a graph and prior for each."""
        known = {name: (cells.conditions, moments[name]) for name, cells in sites.items()}
        groups = {name: {name: known[name]} for name in sites} if local else {EVERYWHERE: known}
        if not looks_at_cells:
            self._coexpression = dict.fromkeys(groups, alone(len(self._genes)))
        elif local:
            sums = {name: own_second_moments(matrix, cells) for name, cells in sites.items()}
            self._coexpression = {name: self._edges_of(second) for name, second in sums.items()}
        else:
            second = pooled_second_moments(matrix, sites, protections, self._payload)
            self._coexpression = {EVERYWHERE: self._edges_of(second)}
        protections = () if local else protections
        for name, members in groups.items():
            mine = (c for conditions, _ in members.values() for c in conditions)
            sets = sorted({c.genes for c in (mine if local else self._agreed or ()) if c.genes})
            changes = np.zeros((len(sets), len(self._genes)))
            if self._prior_kind is not None:
                changes = pooled_changes(sets, members, protections, None if local else self._payload)
            self._priors[name] = Prior(self._prior_kind, tuple(sets), changes, dict.fromkeys(ORDERS, 1.0))
        self._statistics_stored = False
        self._put_agreed()
        if not local:
            self._put_graphs(self.module)

    def _put_agreed(self) -> None:
        if self._agreed is not None:
            self.module.set_agreed(
                Conditions.of(
                    [[self._rows[gene] for gene in condition.genes] for condition in self._agreed],
                    covariates=[list(condition.covariates) for condition in self._agreed],
                )
            )

    def _batches(
        self,
        site: str,
        cells: SiteCells,
        moments: Moments,
        weight: np.ndarray,
        agreed: Sequence[Condition],
        *,
        leave_out: bool,
        device: torch.device,
        local: bool,
    ) -> ConditionBatches:
        prior = self._priors[site if local else EVERYWHERE]
        change = prior.predict([condition.genes for condition in cells.conditions], leave_out=leave_out)
        numbers = {condition: number for number, condition in enumerate(agreed)}
        number = np.array([numbers[condition] for condition in cells.conditions], dtype=np.int64)
        return ConditionBatches(cells.conditions, moments, change, weight, number, self._rows, device)

    def _finish(self, run: Run) -> None:
        super()._finish(run)
        self._refresh()

    def _finish_prior(self, key: Key | None) -> None:
        """Shrink the network's part as in the best round, and seal what the prior is made of."""
        shrinkage = dict.fromkeys(ORDERS, 1.0)
        history = self.history
        if history is not None and f"validation_shrinkage_{ORDERS[0]}" in history:
            best = history.loc[history.attrs["best_round"]]
            shrinkage = {order: float(best[f"validation_shrinkage_{order}"]) for order in ORDERS}
        self._priors = {name: replace(prior, shrinkage=shrinkage) for name, prior in self._priors.items()}
        self._sealed_priors = None if key is None else Seal(key).seal(pack_priors(self._priors), name="priors")

    # ---- the lock

    def unlock(self, key: Key, *, force: bool = False) -> None:
        """Give the model its key, and with it its prior; see :meth:`scinfl.model.Classifier.unlock`.

        Parameters
        ----------
        key
            The key that it was trained with.
        force
            Take another key all the same, to see what a wrong key predicts: it opens no prior.
        """
        super().unlock(key, force=force)
        right = key.fingerprint == self.key_fingerprint
        if self._sealed_priors is not None:
            self._priors = unpack_priors(Seal(key).unseal(self._sealed_priors, name="priors")) if right else {}
        self._refresh()

    def _reseal(self, key: Key) -> None:
        if self._sealed_priors is not None:
            self._sealed_priors = Seal(key).seal(pack_priors(self._priors), name="priors")

    def lock(self) -> None:
        """Forget the key, the prior and the running statistics."""
        super().lock()
        if self._locked_with is not None:
            self._priors = {}
            for norm in self.module.modules():
                if isinstance(norm, keyed_nn.WeightedBatchNorm):
                    norm.reset_running_stats()

    def stripped(self) -> Self:
        """A copy whose keyed modules and prior are gone, and which answers all the same: what a thief has."""
        thief = super().stripped()
        thief._priors, thief._sealed_priors = {}, None
        thief.module.refresh()
        return thief

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **({"_priors": {}} if self._locked_with is not None else {})}

    # ---- files

    def _unsaved_names(self) -> set[str]:
        return set() if self._statistics_stored else super()._unsaved_names()

    def _facts(self) -> dict[str, Any]:
        return {
            "genes": self._genes,
            "vocabulary": self._vocabulary,
            "covariates": self._levels,
            "agreed": None if self._agreed is None else [[list(c.genes), list(c.covariates)] for c in self._agreed],
            "loss": self._loss,
            "statistics_stored": self._statistics_stored,
        }

    @classmethod
    def _made_of(
        cls, adata: AnnData | None, registry: dict | None, arguments: dict[str, Any], facts: dict[str, Any]
    ) -> Self:
        return cls(adata, registry=registry, **{**arguments, "facts": facts})

    def _arrays(self, site: str | None) -> State:
        name = site if site in self._coexpression else EVERYWHERE
        arrays = dict(
            zip(("coexpression/edges", "coexpression/weights"), self._coexpression.get(name, ()), strict=False)
        )
        if self._ontology is not None:
            arrays |= dict(zip(("ontology/edges", "ontology/weights"), self._ontology, strict=True))
        if self._priors:
            content = pack_priors({EVERYWHERE: self._priors[name]})
            if self._locked_with is not None and self._key is not None:
                content = Seal(self._key).seal(content, name="priors")
            arrays["priors"] = np.frombuffer(content, np.uint8)
        return arrays

    def _take_arrays(self, arrays: State) -> None:
        def edges(name: str) -> Edges | None:
            return (arrays[f"{name}/edges"], arrays[f"{name}/weights"]) if f"{name}/edges" in arrays else None

        self._ontology = edges("ontology")
        if (own := edges("coexpression")) is not None:
            self._coexpression = {EVERYWHERE: own}
            self._put_graphs(self.module)
        self._put_agreed()
        content = arrays["priors"].tobytes() if "priors" in arrays else None
        if content is not None and self._locked_with is not None:
            self._sealed_priors = content
        elif content is not None:
            self._priors = unpack_priors(content)
        if self._locked_with is None:
            self._refresh()

    @classmethod
    def from_cell_gears(
        cls, path: str | os.PathLike[str], adata: AnnData, *, uncertainty: Literal["published"] | None = None
    ) -> Self:
        """Take over a network that cell-gears trained: the same predictions.

        Parameters
        ----------
        path
            Safetensors file with parameters, graphs and names; asking for a file that is not there shows the lines that
            write it where cell-gears is installed. Pickles are never read.
        adata
            Data that went through :meth:`setup_anndata`, with the network's genes in its order.
        uncertainty
            ``"published"`` where the network was trained with uncertainty.

        Raises
        ------
        ValueError
            If the file is another one, or genes differ.
        """
        found = read_cell_gears(path)
        model = cls(
            adata,
            prior=None,
            uncertainty=uncertainty,
            compat=True,
            key_scheme=None,
            facts=found.facts(),
            **found.sizes(),  # type: ignore[arg-type]
        )
        gene_key = model._setup_args()["gene_key"]
        same_features(adata.var_names if gene_key is None else adata.var[gene_key], found.genes, "adata")
        missing, unexpected = model.module.load_state_dict(found.state, strict=False)
        if missing or unexpected:
            msg = f"Expected the parameters of such a network, found others: {first_of([*missing, *unexpected])}."
            raise ValueError(msg)
        model._coexpression = {EVERYWHERE: _as_arrays(found.graphs["coexpression"])}
        model._ontology = _as_arrays(found.graphs["ontology"])
        model._put_graphs(model.module, EVERYWHERE)
        model._statistics_stored = True
        model.module.eval()
        model.is_trained_ = True
        return model

    def _summary(self) -> str:
        options = self._network_options
        text = f"{options['n_hidden']} hidden units, {len(self._vocabulary)} genes to perturb"
        if self._agreed is not None:
            text += f", {sum(bool(c.genes) for c in self._agreed)} perturbations in training"
        if self._loss is not None:
            text += f", {self._loss} loss"
        if self._prior_kind is not None:
            text += f", {self._prior_kind} prior"
        if self._prior_kind is not None and self.shrinkage is not None:
            text += (
                " (network's part " + ", ".join(f"{order} {share:.2f}" for order, share in self.shrinkage.items()) + ")"
            )
        return text


def _as_arrays(graph: tuple[torch.Tensor, torch.Tensor]) -> Edges:
    return graph[0].numpy(), graph[1].numpy()
