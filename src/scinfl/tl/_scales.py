"""Which scale to look at sections on."""

from __future__ import annotations

from collections.abc import Sequence

from anndata import AnnData

from scinfl import _names
from scinfl._checks import whole_number
from scinfl.model.spamosaic import compare_scales, read_spots

SCALES: tuple[str | int, ...] = ("cell", "niche", 6, 12, 20, 30)


def scales(
    adata: AnnData,
    *,
    section_key: str,
    spatial_key: str = "spatial",
    layer: str | None = None,
    normalise: str | None = None,
    scales: Sequence[str | int] = SCALES,
    n_clusters: Sequence[int] = (5, 10),
    n_halvings: int = 2,
    rng: int = 0,
) -> None:
    """Compare scales of a :class:`~scinfl.model.SpaMosaic` on one's own sections, without labels and without a model.

    Every count goes to one of two halves by a fair coin; values that are no counts are halved by features. Each half
    gives principal components, and at each scale their averages over neighbourhoods. Two numbers are compared, and
    they answer different questions: *stability*, the agreement of k-means on one half with that on the other
    (adjusted Rand index), favours wide neighbourhoods and domains; the *held-out fit*, the share of the variance of
    one half's components that the other's averages explain, favours narrow ones and cells. Neither knows which
    is meant; :func:`scinfl.pl.scales` draws both. Nothing leaves the site.

    Sets the following field:

    ``.uns["infl"]["scales"]``
        Data frame (scales × ``"spots"``, ``"stability"``, ``"held_out"``); ``"spots"`` is the mean number of spots that
        are averaged.

    Parameters
    ----------
    adata
        Spots × features: raw counts, or values on a log scale.
    section_key
        Column of ``.obs`` with the section of each spot.
    spatial_key
        Entry of ``.obsm`` with the coordinates, in any unit.
    layer
        Layer to use instead of ``.X``.
    normalise
        See :meth:`scinfl.model.SpaMosaic.setup_anndata`; by default logarithms of the share in the spot for counts.
    scales
        What ``SpaMosaic(scale=)`` takes: ``"cell"``, ``"niche"`` or a number of neighbours, over two hops.
        ``"domain"`` is left out, which chooses among these numbers.
    n_clusters
        Numbers of clusters whose stability is averaged.
    n_halvings
        How often counts are halved.
    rng
        Seed.

    Raises
    ------
    KeyError
        If a column, layer or entry does not exist.
    ValueError
        If values cannot be used, or a scale is none.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.mosaic_simulated(3, n_spots=100)["rna"]
    >>> si.tl.scales(adata, section_key="section", n_halvings=1)
    >>> adata.uns["infl"]["scales"].columns.tolist()
    ['spots', 'stability', 'held_out']
    """
    whole_number("n_halvings", n_halvings, 1)
    for number in n_clusters:
        whole_number("n_clusters", number, 2)
    if "domain" in scales:
        msg = "Expected scales of a width that is known, found 'domain', which chooses one. Leave it out."
        raise ValueError(msg)
    (measured,) = read_spots(
        adata,
        section_key=section_key,
        site_key=None,
        spatial_key=spatial_key,
        layers={"X": layer},
        normalise={"X": normalise} if normalise else None,
    ).values()
    found = compare_scales(measured, scales, n_clusters, n_halvings, rng)
    adata.uns.setdefault(_names.UNS, {})["scales"] = found
