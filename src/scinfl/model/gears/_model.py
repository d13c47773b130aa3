"""Predict how cells respond to perturbations of genes, with one network trained over sites."""

from __future__ import annotations

import logging
import os
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
from scinfl._checks import (
    an_anndata,
    finite,
    first_of,
    number_between,
    obs_column,
    one_of,
    same_features,
    values_of,
    warn_of_counts,
    whole_number,
)
from scinfl._conditions import CONTROL
from scinfl.federation import Journal, Protection, Run
from scinfl.model.base._cells import owned, sites_of
from scinfl.model.base._noise_checks import check_noise_of_perturbations
from scinfl.model.base._options import takes
from scinfl.model.base._training import SiteData
from scinfl.model.gears._cell_gears import read_cell_gears
from scinfl.model.gears._coexpression import strongest_edges
from scinfl.model.gears._conditions import AgreedConditions
from scinfl.model.gears._data import (
    TRAIN,
    VALIDATION,
    Condition,
    Design,
    SiteCells,
    check_conditions,
    check_genes,
    condition_names,
    covariate,
)
from scinfl.model.gears._graphs import Edges, Ontology, Vocabulary
from scinfl.model.gears._options import GEARSOptions
from scinfl.model.gears._prediction import EVERYWHERE
from scinfl.model.gears._prior import PRIORS, Prior
from scinfl.model.gears._prior_predictor import PriorPredictor
from scinfl.model.gears._private import check_private, released
from scinfl.model.gears._shrinkage import order_of, shrunk
from scinfl.model.gears._sums import warn_of_few
from scinfl.module import GEARSModule
from scinfl.privacy import SampleDP, Seal
from scinfl.privacy.dp import Released

logger = logging.getLogger(__name__)


class GEARS(PriorPredictor):
    """Predict the response to single and combined perturbations of genes, seen and unseen, trained over sites.

    The network of GEARS (Roohani, Huang & Leskovec 2024): it knows which genes are similar, by a gene ontology and by
    co-expression, and predicts the mean change that a set of perturbed genes makes to every gene. It is trained on
    moments of the cells of each condition, which replace the cells exactly (see :func:`scinfl.module.change_loss`), so
    that the time of an epoch grows with conditions × genes, however many cells there are.

    Parameters
    ----------
    adata
        Data that went through :meth:`setup_anndata`.
    gene_ontology
        How similar perturbed genes are: a table with the columns ``source``, ``target``, ``importance`` (or a csv file
        of them), or the terms of each gene (mapping, tsv or gmt file), compared by Jaccard index above 0.1. Without it
        perturbed genes are compared by their co-expression, with a warning.
    n_hidden
        Size of the embeddings.
    n_ontology_layers, n_coexpression_layers
        Propagations over each graph.
    n_neighbours
        Strongest neighbours of a gene that are kept, beside itself.
    coexpression_threshold
        Least size of a correlation that makes an edge.
    prior
        Baseline whose residual the network learns: ``"fitted"`` (simple rules and ridge regressions, each weighted by
        how well it predicts training conditions that are left out), ``"additive"`` (sum of the single changes),
        ``"mean"`` or ``None``, as published. The network's part is shrunk to what helps on validation conditions.
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
        Metadata of a saved model; given by :meth:`load`.

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
        prior: Literal["fitted", "additive", "mean"] | None = "fitted",
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
        counts = {"n_hidden": n_hidden, "n_ontology_layers": n_ontology_layers}
        counts |= {"n_coexpression_layers": n_coexpression_layers, "n_neighbours": n_neighbours}
        for name, number in counts.items():
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
        condition_key: str | None = None,
        *,
        control: str | None = None,
        site_key: str | None = None,
        layer: str | None = None,
        gene_key: str | None = None,
        split_key: str | None = _names.SPLIT,
        covariate_keys: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        """Register the AnnData fields with perturbations, sites and values for this model.

        Parameters
        ----------
        adata
            Cells × genes, on a log scale.
        condition_key
            Column of ``adata.obs`` with the perturbed genes: ``"ctrl"``, ``"A+ctrl"``, ``"A"``, ``"A+B"``, ``"A+B+C"``.
            Order does not matter. This one, ``control`` and ``gene_key`` are by default those that
            :func:`scinfl.pp.perturbations` was called with, else ``"condition"``, ``"ctrl"`` and the index.
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
            (:func:`scinfl.pp.split_perturbations`); without one of the default name all perturbations are trained on.
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
            If controls are missing, or values cannot be used; the message names what and the cure.
        """
        an_anndata(adata)
        covariate_keys = [covariate_keys] if isinstance(covariate_keys, str) else list(covariate_keys)
        known = {} if "source_registry" in kwargs else adata.uns.get(_names.UNS, {}).get("perturbations", {})
        condition_key = condition_key or str(known.get("condition_key", "condition"))
        control = control or str(known.get("control", CONTROL))
        gene_key = gene_key or known.get("gene_key")
        setup_args = cls._get_setup_method_args(**{k: v for k, v in locals().items() if k not in ("kwargs", "known")})
        owned(adata)
        matrix = values_of(adata, layer)
        finite(matrix, adata.var_names)
        warn_of_counts(matrix)
        check_genes(adata, matrix, gene_key, zeros="source_registry" not in kwargs)  # other sites may express them
        check_conditions(condition_names(adata, condition_key, control), control, condition_key)
        sites_of(adata, site_key)
        for key in covariate_keys:
            covariate(adata, key, shared="source_registry" not in kwargs)
        if split_key not in {None, _names.SPLIT} and "source_registry" not in kwargs:
            obs_column(adata, str(split_key), "split_key")
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

    @takes(GEARSOptions)
    def train(self, options: GEARSOptions) -> None:
        """Train over the sites; call it again to go on.

        Before the first round the sites agree, by sums that the server cannot read where there is a key, on one
        co-expression graph and on the mean changes that the prior is made of. The model keeps the round that is best
        on the sites' validation conditions, and shrinks the network's part to what helps there. Sites train by Adam
        over their conditions; gradients are clipped at 1 as published, and the learning rate falls to zero over the
        rounds along a cosine. A site weighs as much as it has conditions.

        Parameters
        ----------
        options
            Settings by name, see :class:`GEARSOptions`.

        Raises
        ------
        ValueError
            If an argument, the key or the data cannot be used; before any training.
        """
        with self._training(options) as model:
            model._train(options)

    def _train(self, options: GEARSOptions) -> None:
        if self._adata is None or self._adata_manager is None:
            msg = "Expected data with perturbations to train on, found none. Load the model with such data."
            raise ValueError(msg)
        design, aside, agreed = self._design(options)
        matrix, min_cells = self._matrix(self._adata), options.min_cells
        sites = {name: SiteCells.of(design, TRAIN, name, min_cells) for name in sorted(set(design.site))}
        sites = {name: cells for name, cells in sites.items() if any(c.genes for c in cells.conditions)}
        if not sites:
            msg = "Expected perturbations to train on, found none. Look at the split, or lower `min_cells`."
            raise ValueError(msg)
        held_out = {name: SiteCells.of(design, VALIDATION, name, min_cells) for name in sites}
        warn_of_few({name: sites[name].n_left_out + held_out[name].n_left_out for name in sites}, min_cells)
        protections, loss, local = self._protections(options, len(sites)), options.loss, options.share == "meta"
        self._check_share(options)
        check_noise_of_perturbations(protections, local=local)
        private = next((protection for protection in protections if isinstance(protection, SampleDP)), None)
        if private is not None:
            check_private(private, loss, self.uncertainty, self._ontology, sites)
            seal = None if options.key is None else Seal(options.key)
            log = None if options.journal is None else Journal(options.journal, seal)
            private.open_account(n_sites=len(sites), n_rounds=options.n_rounds, journal=log)
            sites, held_out = released(private, matrix, sites, held_out, spend=not options.dry_run)
            protections, loss = [Released(p) if p is private else p for p in protections], "squared"
        agreed = agreed or AgreedConditions.of_cells(sites, held_out, aside)
        data = self._data(matrix, sites, held_out, agreed, protections, options, looks_at_cells=private is None)
        self._train_with(self._losses(loss), data, agreed.validated, protections, options)

    def _losses(self, loss: str) -> list[str]:
        """Losses to train with: both where neither was asked for or chosen before."""
        if loss != "auto":
            return [loss]
        if self.uncertainty == "gaussian":
            return ["squared"]  # it is in both
        return ["squared", "quartic"] if self._loss is None else [self._loss]

    def _train_with(
        self,
        losses: Sequence[str],
        data: Mapping[str, SiteData],
        validated: Sequence[Condition],
        protections: Sequence[Protection],
        options: GEARSOptions,
    ) -> None:
        """Train with each loss from the same start, and keep the result that is best on validation conditions."""
        local = options.local_training(optimizer="adam", clip_value=1.0, decay_rounds=options.n_rounds)
        derive = partial(shrunk, prior=self._prior_kind, orders=[order_of(condition.genes) for condition in validated])
        trainings = []
        for loss in losses:
            sites = {name: replace(own, loss_options={"loss": loss, **own.loss_options}) for name, own in data.items()}
            own = options
            if options.journal is not None and len(losses) > 1:
                own = replace(options, journal=Path(options.journal) / loss)
            trainings.append(self._training_of(sites, local, own, protections, derive=derive))
        runs = self._federate(*trainings)
        best = min(range(len(runs)), key=lambda number: _best_value(runs[number], options.monitor))
        self._finish(runs[best], options)
        if runs[best] is not None:
            self._loss = losses[best]
            self._finish_prior(options.key)
        if len(losses) > 1:
            logger.info("Kept the %s loss, which is better on validation conditions.", losses[best])

    def _design(self, options: GEARSOptions) -> tuple[Design, frozenset[tuple[str, ...]], AgreedConditions | None]:
        """Cells and their parts, what was drawn to validate with, and what sites elsewhere agreed on."""
        design = Design.of(self._adata, self._setup_args(), self._levels)
        size, rng, remote = options.validation_size, options.seed, options.remote
        if remote is None:
            own = design.with_validation(size, rng)
            return own, frozenset(design.training_sets() - own.training_sets()), None
        agreed = AgreedConditions.of_facts(remote.facts, self._levels, size, rng)
        return design.at(remote.site).set_aside(agreed.aside), agreed.aside, agreed

    # ---- files

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
        text = f"{self._network_options['n_hidden']} hidden units, {len(self._vocabulary)} genes to perturb"
        if self._agreed is not None:
            text += f", {sum(bool(c.genes) for c in self._agreed)} perturbations in training"
        if self._loss is not None:
            text += f", {self._loss} loss"
        if self._prior_kind is not None:
            text += f", {self._prior_kind} prior"
            shares = ", ".join(f"{order} {share:.2f}" for order, share in (self.shrinkage or {}).items())
            text += f" (network's part {shares})" if shares else ""
        return text


def _best_value(run: Run | None, monitor: str) -> float:
    """Best monitored value of a run, smaller is better; 0 where nothing was monitored."""
    values = [record[monitor] for record in run.history if monitor in record] if run is not None else []
    if not values:
        return 0.0
    return float(np.nanmin(values) if "mse" in monitor else -np.nanmax(values))


def _as_arrays(graph: tuple[torch.Tensor, torch.Tensor]) -> Edges:
    return graph[0].numpy(), graph[1].numpy()
