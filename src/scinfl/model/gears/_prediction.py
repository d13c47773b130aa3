"""Predictions of a trained model of perturbations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from scinfl._checks import finite, first_of, one_of, values_of, warn
from scinfl._conditions import SEPARATOR, genes_of, name_of, respelled
from scinfl._spelling import spelled
from scinfl.metrics import interaction
from scinfl.model.base._cells import Matrix, sites_of
from scinfl.model.base._model import FederatedModel
from scinfl.model.gears._data import TEST, Condition, condition_names, covariate
from scinfl.model.gears._graphs import Edges, put_graphs
from scinfl.model.gears._prior import Prior
from scinfl.model.gears._shrinkage import AT_LEAST, order_of
from scinfl.module import Conditions, GEARSModule

_COMPAT_CELLS = 300  # control cells that cell-gears predicts with
_AT_MOST = 50  # measured pairs that show the usual size of an interaction
EVERYWHERE = ""  # in place of a site's name, for what all sites share


class PerturbationPredictor(FederatedModel):
    """A model that predicts changes of expression, and what it predicts them from."""

    module: GEARSModule
    _network_options: dict[str, Any]
    _genes: list[str]
    _vocabulary: list[str]
    _levels: dict[str, list[str]]
    _rows: dict[str, int]
    _agreed: list[Condition] | None
    _ontology: Edges | None
    _coexpression: dict[str, Edges]
    _priors: dict[str, Prior]
    _prior_kind: str | None

    def predict(
        self,
        perturbations: Sequence[str | Sequence[str]],
        adata: AnnData | None = None,
        *,
        covariates: Mapping[str, str] | None = None,
        site: str | None = None,
    ) -> AnnData:
        """Predict mean expression after perturbations.

        Parameters
        ----------
        perturbations
            Names such as ``"A"``, ``"A+B"``, or lists of genes such as ``["A", "B"]``; the order of genes does not
            matter.
        adata
            Data whose control cells the change is added to; the training data by default.
        covariates
            Level of each covariate (cell type, dose) that the model was set up with.
        site
            Site whose control cells, and personal model where sites have one, are used; all by default.

        Returns
        -------
        Perturbations × genes: predicted mean in ``.X``, change in ``.layers["delta"]``, standard deviation
        of single cells in ``.layers["uncertainty"]`` where it was trained, expected error of the predicted mean (one
        standard deviation) in ``.layers["error"]`` with the fitted prior (NaN where it is a measurement, or fewer than
        five conditions could be left out), mean of the controls in ``.var["control_mean"]``, and in ``.obs`` how many
        genes are perturbed and how many of them were not in training.

        Raises
        ------
        RuntimeError
            If the model is untrained or locked.
        ValueError
            If there are no control cells, or without a prior a gene is unknown.
        """
        names = _as_list(perturbations)
        change, spread = self._predict(names, covariates, site)
        sets = [genes_of(name, self._setup_args()["control"]) for name in names]
        error = self._expected_error(sets, site)
        adata, rows = self._controls(adata, covariates, site)
        control = np.asarray(self._matrix(adata)[rows].mean(0)).ravel()
        trained = {gene for condition in self._agreed or () for gene in condition.genes}
        obs = pd.DataFrame(
            {"n_genes": [len(genes) for genes in sets], "n_unseen": [len(set(genes) - trained) for genes in sets]},
            index=pd.Index(names, name="perturbation"),
        )
        var = pd.DataFrame({"control_mean": control}, index=self.var_names)
        result = AnnData((control + change).astype(np.float32), obs, var)
        result.layers["delta"] = change.astype(np.float32)
        if spread is not None:
            result.layers["uncertainty"] = np.exp(0.5 * spread).astype(np.float32)
        if error is not None:
            result.layers["error"] = error.astype(np.float32)
        return result

    def predict_change(
        self,
        perturbations: Sequence[str | Sequence[str]],
        *,
        covariates: Mapping[str, str] | None = None,
        site: str | None = None,
    ) -> pd.DataFrame:
        """Predict the mean change of expression (perturbations × genes); needs no data.

        Parameters
        ----------
        perturbations, covariates, site
            See :meth:`predict`.
        """
        names = _as_list(perturbations)
        change, _ = self._predict(names, covariates, site)
        return pd.DataFrame(change, index=pd.Index(names, name="perturbation"), columns=self.var_names)

    def predict_cells(
        self,
        perturbation: str,
        adata: AnnData | None = None,
        *,
        covariates: Mapping[str, str] | None = None,
        site: str | None = None,
    ) -> AnnData:
        """Predict each control cell after a perturbation: the cell plus the predicted change.

        Parameters
        ----------
        perturbation
            Name such as ``"A+B"``.
        adata, covariates, site
            See :meth:`predict`.

        Returns
        -------
        The control cells with predicted expression in ``.X``.
        """
        change, _ = self._predict([perturbation], covariates, site)
        adata, rows = self._controls(adata, covariates, site)
        cells = self._matrix(adata)[rows]
        cells = cells.toarray() if sparse.issparse(cells) else cells
        return AnnData((cells + change).astype(np.float32), adata.obs.iloc[rows].copy(), adata.var.copy())

    def predict_interaction(
        self, pairs: Sequence[str | Sequence[str]], *, covariates: Mapping[str, str] | None = None, **options: Any
    ) -> pd.DataFrame:
        """Genetic-interaction scores of pairs from predicted changes, see :func:`scinfl.metrics.interaction`.

        What counts as more or less than usual (``"synergy"``, ``"suppression"``) follows from the pairs of the training
        data that were measured with both of their single perturbations: their median ``mag`` takes the place of that
        of the published screen. With fewer than five such pairs ``type`` is missing, unless you pass ``thresholds``.

        Parameters
        ----------
        pairs
            ``"A+B"`` or ``["A", "B"]``, several as a list of these.
        covariates
            See :meth:`predict`.
        options
            Passed to :func:`scinfl.metrics.interaction`.
        """
        named = _as_list(pairs)
        sets = [genes_of(name, self._setup_args()["control"]) for name in named]
        if odd := [name for name, genes in zip(named, sets, strict=True) if len(genes) != 2]:
            right = (respelled(name, self._vocabulary) or "" for name in odd)
            meant = next((name for name in right if name.count(SEPARATOR) == 1), SEPARATOR.join((*odd, "B")[:2]))
            msg = f"Expected pairs of two different genes, found {first_of(odd)}. Write a pair as `[{meant!r}]`."
            raise ValueError(msg)
        names = sorted({gene for genes in sets for gene in genes}) + sorted({name_of(genes) for genes in sets})
        found = self.predict_change(names, covariates=covariates)
        if "thresholds" in options:
            return interaction(found, named, **options)
        usual = self._usual_magnitude()
        limits = {} if usual is None else {"synergy": 1.13 * usual, "suppression": 0.83 * usual}
        table = interaction(found, named, thresholds=limits, **options)
        return table if usual is not None else table.assign(type=None)

    def _usual_magnitude(self) -> float | None:
        """Median ``mag`` of measured pairs of measured singles; None where there are few."""
        prior = next(iter(self._priors.values()), None)
        if prior is None or prior.kind is None:
            return None
        known = set(prior.conditions)
        pairs = [genes for genes in prior.conditions if len(genes) == 2 and {(gene,) for gene in genes} <= known]
        if len(pairs) < AT_LEAST:
            return None
        names = [name_of(genes) for genes in prior.conditions]
        chosen = [name_of(genes) for genes in pairs[:: -(-len(pairs) // _AT_MOST)]]
        scores = interaction(pd.DataFrame(prior.changes, names, self.var_names), chosen, n_subsets=10_000)
        return float(scores["mag"].median())

    def _predict(
        self, perturbations: Sequence[str], covariates: Mapping[str, str] | None, site: str | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Change, and log variance where it was trained (perturbations × genes)."""
        self._check_ready()
        sets = [genes_of(name, self._setup_args()["control"]) for name in perturbations]
        self._check_known(sets)
        codes = self._covariate_codes(covariates)
        prior = self._prior_of(site)
        with self._as_site(site), torch.inference_mode():
            self.module.eval()
            change, spread = self._network_change(sets, codes)
            if prior is None:
                return change, spread
            known = prior.predict(sets, leave_out=False, alike=self._alike)
        part = [self._share_of_network(prior, genes) for genes in sets]
        change *= prior.moving  # of a gene that is zero in all cells the network knows nothing
        return known + np.array(part)[:, None] * change, spread

    def _expected_error(self, sets: Sequence[tuple[str, ...]], site: str | None) -> np.ndarray | None:
        prior = self._prior_of(site)
        return None if prior is None else prior.error(sets)

    def _prior_of(self, site: str | None) -> Prior | None:
        """Prior of a site that has one of its own, else that of all; none in a locked model."""
        return self._priors.get(site or EVERYWHERE, self._priors.get(EVERYWHERE))

    def _alike(self, genes: Sequence[str]) -> np.ndarray:
        """Similarity of genes: the cosine of their neighbours in the graph of perturbed genes."""
        graph = self.module.graphs["ontology"].cpu().double()
        edges, shape = graph.indices().numpy(), tuple(graph.shape)
        known = [self._rows[gene] for gene in genes if gene in self._rows]
        places = [place for place, gene in enumerate(genes) if gene in self._rows]
        near = sparse.csr_array((graph.values().numpy(), (edges[0], edges[1])), shape)[known]
        near = near.multiply(1 / np.sqrt(near.power(2).sum(1))[:, None]).tocsr()
        similarity = np.eye(len(genes))
        similarity[np.ix_(places, places)] = (near @ near.T).toarray()
        return similarity

    def _share_of_network(self, prior: Prior, genes: Sequence[str]) -> float:
        """Share of the network's change that is added; none where the prior measured it or a gene is unknown."""
        if prior.is_measured(genes) or (prior.kind and not genes) or not all(gene in self._rows for gene in genes):
            return 0.0
        return prior.shrinkage[order_of(genes)]

    def _check_known(self, sets: Sequence[Sequence[str]]) -> None:
        """Warn of genes that the network does not know, for which the prior alone answers; refuse them without one."""
        unknown = sorted({gene for genes in sets for gene in genes if gene not in self._rows})
        found = {gene: respelled(gene, self._vocabulary) for gene in unknown}
        meant = [f"{right!r} for {gene!r}" for gene, right in found.items() if right]
        if meant or (unknown and self._prior_kind is None):
            msg = (
                f"Expected perturbed genes that the model knows, found {len(unknown)} others: {first_of(unknown)}. It "
                f"knows {len(self._vocabulary)} (`model.perturbation_genes`){', for example ' if meant else ''}"
                f"{first_of(meant)}; name further ones with `GEARS(perturbation_genes=)` before training."
            )
            raise ValueError(msg)
        if unknown:
            warn(
                f"The network knows nothing of {len(unknown)} perturbed genes: {first_of(unknown)}. They are predicted "
                "as the mean of the perturbations in training. Check their names, or name them with "
                "`GEARS(perturbation_genes=)` before training."
            )

    def _network_change(
        self, sets: Sequence[tuple[str, ...]], codes: list[int]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        members = [[self._rows[gene] for gene in genes if gene in self._rows] for genes in sets]
        device = self.device
        if not self.module.compat:
            conditions = Conditions.of(members, covariates=[codes] * len(members), device=device)
            change, spread = self.module.change_and_spread(conditions)
            return change.double().cpu().numpy(), None if spread is None else spread.double().cpu().numpy()
        changes, spreads = [], []
        for genes in members:  # each its own batch of 300 cells, the first of which is special
            pair = Conditions.of([genes, genes], covariates=[codes] * 2, device=device)
            change, spread = self.module.change_and_spread(pair)
            mean = torch.tensor([[1.0], [_COMPAT_CELLS - 1.0]], device=device) / _COMPAT_CELLS
            changes.append((change * mean).sum(0))
            spreads.append(None if spread is None else (spread * mean).sum(0))
        stacked = torch.stack(changes).double().cpu().numpy()
        return stacked, None if self.uncertainty is None else torch.stack(spreads).double().cpu().numpy()  # type: ignore[arg-type]

    @property
    def uncertainty(self) -> str | None:
        """Kind of uncertainty that is predicted."""
        return self._network_options["uncertainty"]

    def _covariate_codes(self, covariates: Mapping[str, str] | None) -> list[int]:
        given = dict(covariates or {})
        if set(given) != set(self._levels):
            msg = (
                f"Expected a level for each covariate {sorted(self._levels)}, found {sorted(given)}. "
                f"{spelled('Pass `covariates=`')}."
            )
            raise ValueError(msg)
        for name, level in given.items():
            one_of(f"covariates['{name}']", str(level), self._levels[name])
        return [self._levels[name].index(str(given[name])) for name in self._levels]

    def _controls(
        self, adata: AnnData | None, covariates: Mapping[str, str] | None, site: str | None
    ) -> tuple[AnnData, np.ndarray]:
        """Data and the rows of the control cells that a prediction starts from."""
        adata = self._validate_anndata(adata)
        setup = self._setup_args()
        names = condition_names(adata, setup["condition_key"], setup["control"])
        chosen = (names == setup["control"]).to_numpy(copy=True)
        if setup["split_key"] is not None and setup["split_key"] in adata.obs:
            chosen &= ~adata.obs[setup["split_key"]].isin([TEST]).to_numpy()
        for name, level in (covariates or {}).items():
            chosen &= (covariate(adata, name) == str(level)).to_numpy()
        if site is not None and setup["site_key"] is not None:
            chosen &= (sites_of(adata, setup["site_key"], at_least=1).astype(str) == site).to_numpy()
        if not chosen.any():
            msg = (
                f"Expected control cells ('{setup['control']}' in adata.obs['{setup['condition_key']}']) to start "
                "from, found none. Pass data with control cells, or ask for the change alone with `predict_change`."
            )
            raise ValueError(msg)
        return adata, np.flatnonzero(chosen)

    @contextmanager
    def _as_site(self, site: str | None) -> Iterator[None]:
        """Use the personal parameters, graph and statistics of a site; forget them afterwards."""
        personal = self._personal(site)
        if not personal:
            yield
            return
        parameters = dict(self.module.named_parameters())
        before = {name: parameters[name].detach().clone() for name in personal}
        try:
            with torch.no_grad():
                for name, array in personal.items():
                    parameters[name].copy_(torch.from_numpy(array))
            if site in self._coexpression:
                self._put_graphs(self.module, site)
            self.module.refresh()
            yield
        finally:
            with torch.no_grad():
                for name, tensor in before.items():
                    parameters[name].copy_(tensor)

    def _matrix(self, adata: AnnData) -> Matrix:
        matrix = values_of(adata, self._setup_args()["layer"])
        finite(matrix, adata.var_names)
        return matrix

    def _refresh(self) -> None:
        """Take the running statistics again, unless each site has a model of its own."""
        if not (self.is_personal and self._local_states):
            self.module.refresh()

    def _put_graphs(self, module: GEARSModule, site: str = EVERYWHERE) -> None:
        """Give a network the graphs of a site, or of all."""
        put_graphs(module, self._coexpression[site], self._ontology, self._genes, self._rows)


def _as_list(perturbations: Sequence[Any]) -> list[str]:
    """Names as a list; a single name was meant as a list of one, a list of genes (``["A", "B"]``) as ``"A+B"``."""
    several = [perturbations] if isinstance(perturbations, str) else perturbations
    names = [SEPARATOR.join(map(str, name)) if isinstance(name, list | tuple) else name for name in several]
    if not names or (odd := [name for name in names if not isinstance(name, str)]):
        found = first_of(odd) if names else "none"
        cure = "Name some, for example `['KLF1', 'KLF1+BAK1']`"
        msg = f"Expected at least one perturbation, each by name, found {found}. {cure}."
        raise ValueError(msg)
    return list(map(str, names))
