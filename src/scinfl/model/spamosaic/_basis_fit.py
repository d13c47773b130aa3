"""What sites agree on before training, for all modalities at the same time; all from sums over sites."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor

from scinfl._errors import TwoSitesWarning
from scinfl.federation import Payload, Protection
from scinfl.federation.rounds import are_elsewhere
from scinfl.model.spamosaic._batches import SpotTensors, centred, propagated
from scinfl.model.spamosaic._directions import WIDTHS, DirectionsFit, hop_of, missed_with, variances
from scinfl.model.spamosaic._measured import Measured
from scinfl.model.spamosaic._spatial_basis import BasisOptions, SpatialBasis
from scinfl.pp.federated import Computation, Rule, SiteSums, aligned, in_step, log_sent, run, sums_payload
from scinfl.privacy import Key

_TOLERANCE = 0.03
_SPOTS_A_PROTOTYPE = 80
_ALIGNMENT = Rule(diversity=0.0, width=0.05, shrinkage=1.0, min_members=3)
_ROUNDS = 12  # of alignment, an exchange each
_FEWER_FEATURES = 500  # that normalisations are compared on
_MUCH_MORE = 1.2


class BasisFit(DirectionsFit):
    """What sites agree on for one modality before training, and what their spots are on it."""

    def complete(self, rng: int) -> Computation[None]:
        """Let the sites agree on neighbourhoods along the directions, and align these over sections."""
        options, scores, section = self._options, self.scores, self.measured.section
        width = self._width() if options.finds_width else options.n_neighbours or 0
        self.graph = self._graph(width or None)
        self._graphs.clear()
        hop = self.hop = options.hop(self.measured, self.graph, scores @ self.rotation)
        if options.mutual_weight:
            products = self._second_moments(self._hops(width, hop))
            pooled, _ = yield from self._sums.mean("scale of neighbourhoods", products)
            self.second |= pooled
        hops = [self.second["products"], *(self.second[hop_of(width, n)] for n in range(1, options.n_hops + 1))]
        squares = np.concatenate([variances(own, self.rotation) for own in hops])
        parts = (*self._parts, np.diag(self.second["products"]).copy(), self.rotation, self.strength)
        self.basis = SpatialBasis(*parts, np.sqrt(np.maximum(squares, 1e-12)), np.array([width]))
        self.inputs = self.basis.inputs(scores, section, hop, options.n_hops)
        self.values = self.basis.values(scores)
        n_target = options.sizes(self._n_vars)[2]
        around = centred(propagated(scores[:, :n_target], hop, options.n_hops)[-1], section)
        scale = np.sqrt(max(np.diag(hops[-1])[:n_target].mean(), 1e-12))
        self.target = yield from self._aligned(around / scale, rng)

    def tensors(self, place: Tensor, *, values: bool, graph: bool) -> SpotTensors:
        """What the network reads and predicts of spots that are at these places."""
        inputs, target = torch.from_numpy(self.inputs), torch.from_numpy(self.target)
        known = torch.from_numpy(self.values) if values else None
        return SpotTensors(place, inputs, target, known, self.graph if graph else None)

    def _width(self) -> int:
        """Most neighbours whose means, two hops far, still predict the strongest direction of a spot they leave out."""
        strongest = self.rotation[:, :1]
        left = np.array([variances(self.second[missed_with(width)], strongest)[0] for width in WIDTHS])
        explained = 1 - left / max(variances(self.second["products"], strongest)[0], 1e-12)
        good = np.flatnonzero(explained >= (1 - _TOLERANCE) * explained.max())
        return WIDTHS[int(good.max()) if explained.max() > 0 else -1]

    def _aligned(self, target: np.ndarray, rng: int) -> Computation[np.ndarray]:
        """Components of neighbourhoods, aligned over sections (spots × n_target, float32)."""
        if len(np.unique(self.measured.section)) == 1 and not self._elsewhere:
            return target.astype(np.float32)
        found, _, _ = yield from aligned(
            self._sums,
            target,
            np.unique(self.measured.section, return_inverse=True)[1],
            int(np.clip(self.n_spots // _SPOTS_A_PROTOTYPE, 4, 40)),
            _ALIGNMENT,
            max_rounds=_ROUNDS,
            n_assignments=1,
            n_dims=2,
            rng=rng,
        )
        return found


def fit_bases(
    measured: Mapping[str, Measured],
    options: BasisOptions,
    *,
    key: Key | None,
    protections: Sequence[Protection] | None,
    payload: Payload,
    rng: int,
    site: str | None = None,
    undecided: Collection[str] = (),
) -> dict[str, BasisFit]:
    """Let the sites agree on the directions of all modalities, in step: an exchange serves all of them.

    Parameters
    ----------
    measured
        Spots by modality.
    options
        How directions are found.
    key, protections, payload
        What guards the sums, and where it is listed what left.
    rng
        Seed of the order in which sites assign their spots.
    site
        Where the other sites are elsewhere, the one that is here, which may lack a modality.
    undecided
        Modalities of counts whose normalisation the tissue decides.
    """
    elsewhere, sent = are_elsewhere(protections or ()), sums_payload()

    def fit(own: Measured, of: str | None, least: int) -> BasisFit:
        names = np.unique(own.site).tolist() if site is None else [site]
        rows = {name: np.flatnonzero(own.site == name) for name in names}
        sums = SiteSums(work, "spatial_basis", rows=rows, key=key, protections=protections, of=of, payload=sent)
        return BasisFit(own, options, sums, least=least, elsewhere=elsewhere)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TwoSitesWarning)  # the model warns once for all sums
        work, every = AnnData(), []
        for name, own in measured.items():
            is_open, of = name in undecided, own.modality
            least = min(options.n_features, _FEWER_FEATURES) if is_open else options.n_features
            fits = [fit(own, of, least)]
            if is_open:
                fits.append(fit(replace(own, normalise="clr"), "clr" if of is None else f"{of} as clr", least))
            every.append(_fit_best(fits, options.n_features, least, rng))
        found = run(in_step(*every))
    log_sent("spatial_basis", sent.table)
    payload.extend(sent.table)
    return dict(zip(measured, found, strict=True))


def _fit_best(fits: Sequence[BasisFit], n_features: int, least: int, rng: int) -> Computation[BasisFit]:
    """The normalisation that fits the tissue: centred log ratios where neighbours say clearly more about spots in them.

    Where depth is part of the tissue, dividing by it removes what the sections are divided by. That shows without
    labels: what neighbours say about a spot falls by much. Most of the time it does not, and depth is noise.
    """
    yield from in_step(*(own.moments() for own in fits))
    best = fits[0]
    if len(fits) > 1:
        last = min(n_features, best.measured.matrix.shape[1]) <= least
        yield from in_step(*(own.directions(least, last=last) for own in fits))
        shares, ratios = fits
        best = ratios if ratios.information > _MUCH_MORE * shares.information else shares
    yield from best.directions(n_features)
    yield from best.complete(rng)
    return best
