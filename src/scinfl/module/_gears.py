"""Local learner of GEARS: the change that a set of perturbations makes to every gene."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from scinfl.module._gears_loss import SUMS, Targets, change_loss, scores
from scinfl.nn import NormMLP, Table, WeightedBatchNorm, decode_pairs, folded, normalised_adjacency, propagate

_POSITION = 0.2  # weight of a gene's place in the co-expression graph, as published
_PAIRS = 1 << 17  # pairs of condition and gene at a time in prediction


@dataclass(frozen=True)
class Conditions:
    """Sets of perturbed genes.

    Examples
    --------
    >>> import scinfl as si
    >>> conditions = si.module.Conditions.of([[], [0], [0, 2]])  # controls, a single perturbation, a pair
    >>> len(conditions), conditions.rows.tolist()
    (3, [1, 2, 2])
    """

    genes: Tensor  # perturbed genes of all conditions, as rows of the network's vocabulary
    rows: Tensor  # which condition each of them belongs to; controls have none
    covariates: Tensor  # level of every covariate (conditions × covariates)
    weight: Tensor  # how many cells of a batch a condition represents in the normalisations

    def __len__(self) -> int:
        return len(self.weight)

    def to(self, device: torch.device) -> Conditions:
        """The same on another device."""
        return Conditions(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    @classmethod
    def of(
        cls,
        members: Sequence[Sequence[int]],
        *,
        covariates: Sequence[Sequence[int]] | None = None,
        weight: Sequence[float] | None = None,
        device: torch.device | str = "cpu",
    ) -> Conditions:
        """Conditions from the perturbed genes of each."""
        n = len(members)
        return cls(
            torch.tensor([gene for genes in members for gene in genes], dtype=torch.long, device=device),
            torch.tensor([row for row, genes in enumerate(members) for _ in genes], dtype=torch.long, device=device),
            torch.tensor(covariates or [[]] * n, dtype=torch.long, device=device).reshape(n, -1),
            torch.tensor([1.0] * n if weight is None else weight, dtype=torch.float32, device=device),
        )


class GEARSModule(nn.Module):
    r"""Network of GEARS (Roohani, Huang & Leskovec 2024, Nature Biotechnology 42:927), one pass a *condition*.

    The prediction of a cell is the cell plus a change that depends on the condition alone, so the change is computed
    once a condition:

    .. math::
        z_g &= \text{MLP}_1(\text{ReLU}(\text{BN}(e_g)) + 0.2\, \hat A_\text{co} q_g), \qquad
        u_c = \text{MLP}_2\Big(\sum_{p \in c} \hat A_\text{GO} v_p\Big) \\
        r_{cg} &= \text{MLP}_3(\text{ReLU}(\text{BN}(z_g + u_c))), \qquad
        o_{cg} = \langle r_{cg}, w_g \rangle + b_g \\
        \delta_{cg} &= a_g\, o_{cg} + \langle \text{MLP}_4(o_c), a'_g \rangle + b'_g

    with embeddings :math:`e, q` of genes and :math:`v` of perturbations, graphs of co-expression and gene ontology, and
    read-outs of each gene. Every MLP is Linear–BN–ReLU–Linear–BN. Controls have :math:`u = 0`.

    Parameters
    ----------
    genes
        Measured genes, in order.
    vocabulary
        Genes that may be perturbed.
    covariates
        Levels of each covariate, by name; each level adds a learned vector to :math:`u`.
    n_hidden
        Size of the embeddings, :math:`d`.
    n_ontology_layers, n_coexpression_layers
        Propagations, with ReLU between them.
    uncertainty
        Predict a log variance a gene and condition: ``"gaussian"``, or ``"published"`` whose last layer is normalised.
    compat
        Propagate over the co-expression graph for the first condition of a batch only, which is what the published
        network computes.

    Examples
    --------
    >>> import scinfl as si
    >>> network = si.module.GEARSModule(["KLF1", "BAK1", "CD4"], ["KLF1", "BAK1"], n_hidden=8)
    >>> network(si.module.Conditions.of([[0], [0, 1]])).shape  # conditions × genes
    torch.Size([2, 3])
    """

    def __init__(
        self,
        genes: Sequence[str],
        vocabulary: Sequence[str],
        *,
        covariates: Mapping[str, Sequence[str]] | None = None,
        n_hidden: int = 64,
        n_ontology_layers: int = 1,
        n_coexpression_layers: int = 1,
        uncertainty: Literal["gaussian", "published"] | None = None,
        compat: bool = False,
    ) -> None:
        super().__init__()
        d, n_genes = n_hidden, len(genes)
        self.n_genes, self.compat, self.uncertainty = n_genes, compat, uncertainty
        self.gene_embedding = Table(genes, d, max_norm=1.0)
        self.gene_position = Table(genes, d, max_norm=1.0)
        self.perturbation_embedding = Table(vocabulary, d, max_norm=1.0)
        self.covariate_embedding = nn.ModuleList(
            Table([f"{name}={level}" for level in levels], d, std=0.1) for name, levels in (covariates or {}).items()
        )
        self.coexpression = nn.ModuleList(nn.Linear(d, d) for _ in range(n_coexpression_layers))
        self.ontology = nn.ModuleList(nn.Linear(d, d) for _ in range(n_ontology_layers))
        self.gene_norm = WeightedBatchNorm(d)
        self.gene_mlp = NormMLP([d, d, d])
        self.perturbation_mlp = NormMLP([d, d, d])
        self.base_norm = WeightedBatchNorm(d)
        self.pair_mlp = NormMLP([d, 2 * d, d])
        self.readout = Table(genes, d + 1, std=[*[math.sqrt(2 / (n_genes + d))] * d, math.sqrt(2 / (n_genes + 1))])
        self.cross_gene_mlp = NormMLP([n_genes, d, d])
        spread = math.sqrt(2 / ((n_genes + 1) * (d + 1)))
        self.cross_readout = Table(genes, d + 2, std=[*[spread] * (d + 1), math.sqrt(2 / (n_genes + 1))])
        if uncertainty is not None:
            self.uncertainty_mlp = NormMLP([d, 2 * d, d, 1], last_norm=uncertainty == "published")
        self.graphs: dict[str, Tensor] = {}
        """Normalised graphs by name, see :meth:`set_graph`."""
        self.agreed: Conditions | None = None
        """Conditions over which the running statistics are taken."""
        self.n_validated = 0
        """Number of validation conditions over all sites."""

    def set_graph(self, name: Literal["coexpression", "ontology"], edges: Tensor, weights: Tensor) -> None:
        """Set a graph.

        Parameters
        ----------
        name
            Between measured genes, or between the vocabulary.
        edges
            Sources and targets (2 × edges).
        weights
            Weight of each edge.
        """
        n = self.n_genes if name == "coexpression" else len(self.perturbation_embedding.row_names)
        self.graphs[name] = normalised_adjacency(edges[0], edges[1], weights, n)

    def set_agreed(self, conditions: Conditions) -> None:
        """Set the conditions over which the running statistics are taken, the same at every site."""
        self.agreed = conditions

    # ---- forward

    def forward(self, conditions: Conditions) -> Tensor:
        """Change of expression (conditions × genes)."""
        return self.change_and_spread(conditions)[0]

    def change_and_spread(self, conditions: Conditions) -> tuple[Tensor, Tensor | None]:
        """Change of expression and its log variance (conditions × genes), where the network predicts one."""
        readout = self.readout()
        weight = conditions.weight.to(readout)
        z, slot = self._genes(weight)
        u = self._perturbations(conditions)
        z, u = self._add(z, slot, u, weight)
        pairs = self._decode(z, slot, u, weight, readout[:, :-1]) + readout[:, -1]
        spread = self._spread(z, slot, u, weight) if self.uncertainty else None
        cross = self.cross_gene_mlp(pairs, weight)
        own = self.cross_readout()
        return pairs * own[:, 0] + cross @ own[:, 1:-1].T + own[:, -1], spread

    def _genes(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embedded genes (places × genes × d), and which place each condition reads where there are two."""
        total = weight.sum()
        embedded = torch.relu(self.gene_norm(self.gene_embedding(), total.expand(self.n_genes)))
        position = self.gene_position()
        places = [self._propagated(position, self.coexpression, self.graphs.get("coexpression"))]
        counts, slot = total[None], None
        if self.compat:
            places.append(self._propagated(position, self.coexpression, None))
            counts = torch.stack([weight[0], total - weight[0]])
            slot = (torch.arange(len(weight), device=weight.device) > 0).long()
        return self.gene_mlp(embedded + _POSITION * torch.stack(places), counts[:, None]), slot

    def _perturbations(self, conditions: Conditions) -> Tensor:
        """Sum of the perturbations of a condition, fused (conditions × d); 0 for controls."""
        effect = self._propagated(self.perturbation_embedding(), self.ontology, self.graphs.get("ontology"))
        u = effect.new_zeros(len(conditions), effect.shape[1])
        rows = torch.unique(conditions.rows)
        if len(rows) > 0:
            summed = u.index_add(0, conditions.rows, effect[conditions.genes])[rows]
            u = u.index_copy(0, rows, self.perturbation_mlp(summed, conditions.weight[rows]))
        for number, table in enumerate(self.covariate_embedding):
            u = u + table()[conditions.covariates[:, number]]
        return u

    @staticmethod
    def _propagated(x: Tensor, layers: nn.ModuleList, graph: Tensor | None) -> Tensor:
        for number, layer in enumerate(layers):
            x = torch.relu(x) if number else x
            x = layer(x if graph is None else propagate(graph.to(x), x))
        return x

    def _add(self, z: Tensor, slot: Tensor | None, u: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Fold the normalisation of all sums z + u into both; its statistics are those of z and u."""
        if self.base_norm.training:
            share = (weight / weight.sum())[:, None]
            within = z.var(1, correction=0)
            level = z.mean(1)
            within, level = (within[slot], level[slot]) if slot is not None else (within, level)
            mean = (share * (level + u)).sum(0)
            variance = (share * (within + (level + u - mean).square())).sum(0)
            scale, shift = self.base_norm.fold(mean, variance, float(weight.sum()) * self.n_genes)
        else:
            scale, shift = self.base_norm.folded()
        return z * scale, u * scale + shift

    def _decode(self, z: Tensor, slot: Tensor | None, u: Tensor, weight: Tensor, readout: Tensor) -> Tensor:
        """Read-out of every pair of condition and gene."""
        linears, norms = self.pair_mlp.linears, cast("list[WeightedBatchNorm]", list(self.pair_mlp.norms))
        maps = [folded(linear) for linear in linears]
        if any(one is None for one in maps) or (slot is not None and self.training):
            return torch.cat([(r * readout).sum(-1) for r in self._pairs(self.pair_mlp, z, slot, u, weight)])
        (weight1, bias1), (weight2, bias2) = cast("list[tuple[Tensor, Tensor]]", maps)
        if self.training:
            hidden, output = (
                (one, norm.weight, norm.bias, norm.eps) for one, norm in zip((weight1, weight2), norms, strict=True)
            )
            result, seen = decode_pairs(z[0], u, weight / weight.sum(), hidden, output, readout)
            n = float(weight.sum()) * self.n_genes
            norms[0].remember(seen.mean1 + bias1, seen.variance1, n)
            norms[1].remember(seen.mean2 + bias2, seen.variance2, n)
            return result
        (scale1, shift1), (scale2, shift2) = (norm.folded() for norm in norms)
        first, offset = scale1[:, None] * weight1, scale1 * bias1 + shift1
        second, constant = (readout * scale2) @ weight2, readout @ (scale2 * bias2 + shift2)
        parts = [
            (torch.relu(h @ first.T + offset) * second).sum(-1) + constant
            for h in self._hidden(z, slot, u, chunked=True)
        ]
        return torch.cat(parts)

    def _spread(self, z: Tensor, slot: Tensor | None, u: Tensor, weight: Tensor) -> Tensor:
        return torch.cat([s[..., 0] for s in self._pairs(self.uncertainty_mlp, z, slot, u, weight)])

    def _pairs(self, mlp: NormMLP, z: Tensor, slot: Tensor | None, u: Tensor, weight: Tensor) -> Iterator[Tensor]:
        """An MLP over all pairs; in training all at once, since normalisations see all of them."""
        start = 0
        for h in self._hidden(z, slot, u, chunked=not self.training):
            yield mlp(h, weight[start : start + len(h), None])
            start += len(h)

    def _hidden(self, z: Tensor, slot: Tensor | None, u: Tensor, *, chunked: bool) -> Iterator[Tensor]:
        step = max(1, _PAIRS // self.n_genes) if chunked else len(u)
        for start in range(0, len(u), step):
            chunk = slice(start, start + step)
            yield torch.relu((z if slot is None else z[slot[chunk]]) + u[chunk, None])

    # ---- training

    def loss(self, batch: tuple[Conditions, Targets], **options: float | str) -> Tensor:
        """Loss of a batch of conditions, see :func:`change_loss`."""
        conditions, targets = batch
        change, spread = self.change_and_spread(conditions)
        return change_loss(change, targets, spread=spread, uncertainty=self.uncertainty, **options)  # type: ignore[arg-type]

    @property
    def metric_names(self) -> list[str]:
        """Names of what :meth:`evaluate` returns, of all validation conditions."""
        by_condition = [f"{what}_{number}" for what in SUMS for number in range(self.n_validated)]
        return ["mse", "mse_de", "pearson_delta", *by_condition]

    @torch.no_grad()
    def evaluate(self, batches: Iterable[tuple[Conditions, Targets]]) -> dict[str, float]:
        """Mean scores of conditions, and for each validation condition what its shrinkage needs."""
        n, totals = 0.0, dict.fromkeys(self.metric_names, 0.0)  # of all conditions, whichever are here
        for conditions, targets in batches:
            n += float(targets.weight.sum())
            for name, value in scores(self(conditions), targets).items():
                totals[name] = totals.get(name, 0.0) + value
        return {name: value / n for name, value in totals.items()}

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the running statistics again, in one pass over the agreed conditions.

        The inputs of all normalisations depend on parameters and conditions, not on cells, so that sites with the same
        parameters have the same statistics, and none need be sent or saved.
        """
        if self.agreed is None:
            return
        training = self.training
        with self._remembering_all():
            self.train()
            self.change_and_spread(self.agreed.to(self.readout.weight.device))
        self.train(training)

    @contextmanager
    def _remembering_all(self) -> Iterator[None]:
        norms = [module for module in self.modules() if isinstance(module, WeightedBatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        try:
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
