"""What noise on gradients and updates cannot guard, where sites add sums before they train."""

from __future__ import annotations

from collections.abc import Sequence

from scinfl._checks import warn
from scinfl.federation import Protection
from scinfl.privacy import SampleDP, Shuffle, UpdateDP
from scinfl.privacy.dp import ROWS_MIX


def sums_alone(protections: Sequence[Protection]) -> list[Protection] | None:
    """The protections that also guard sums before training; ``None`` where none of several does."""
    chosen = [p for p in protections if p.sums or p.watches]
    return None if protections and not any(p.sums for p in chosen) else chosen


def check_noise_of_perturbations(protections: Sequence[Protection], *, local: bool) -> None:
    """Refuse noise on updates, unless nothing but updates leaves a site.

    Raises
    ------
    ValueError
        If a protection blurs updates, and mean changes are agreed on before training.
    """
    for protection in protections:
        if isinstance(protection, UpdateDP) and not local:
            name = type(protection).__name__
            msg = (
                f"Expected SampleDP for perturbations, found {name}: before training the sites add the mean change of "
                f"every perturbation, which noise on updates does not hide, so its epsilon would promise too much. Use "
                "`SampleDP`, which guards cells in all that leaves, or keep those sums at home with `share='meta'`."
            )
            raise ValueError(msg)


def check_noise_of_spots(protections: Sequence[Protection], *, everywhere: bool) -> None:
    """Refuse noise on single spots, and say what noise on updates leaves open.

    Raises
    ------
    ValueError
        If a protection guards rows, strips senders, or drops what sites say of their modalities.
    """
    for protection in protections:
        if isinstance(protection, SampleDP):
            raise ValueError(ROWS_MIX)  # noqa: TRY004
        if isinstance(protection, Shuffle):
            msg = (
                "Expected UpdateDP for spots, found Shuffle: components, scales and prototypes are agreed on before "
                "training in sums of named sites, so that dropping names later hides nobody. Use `UpdateDP` with a "
                "`KeyedSum`."
            )
            raise ValueError(msg)  # noqa: TRY004
        if isinstance(protection, UpdateDP):
            _check_modalities(everywhere=everywhere)
            warn(
                "Noise on updates guards updates alone: components, scales and prototypes are agreed on before "
                "training without noise, and the column 'epsilon' of the history does not count them."
            )


def check_noise_of_columns(protections: Sequence[Protection], *, everywhere: bool) -> None:
    """Refuse noise on updates whose columns show the sender, or that show which modalities it measured.

    Raises
    ------
    ValueError
        If a protection strips senders, or blurs updates of sites with different modalities.
    """
    for protection in protections:
        if isinstance(protection, Shuffle):
            msg = (
                "Expected UpdateDP for models of scvi-tools, found Shuffle: the columns that an update changes are "
                "those of its site, so that dropping names hides nobody. Use `UpdateDP` with a `KeyedSum`."
            )
            raise ValueError(msg)  # noqa: TRY004
        if isinstance(protection, UpdateDP):
            _check_modalities(everywhere=everywhere)


def _check_modalities(*, everywhere: bool) -> None:
    if not everywhere:
        msg = (
            "Expected the same modalities at all sites for UpdateDP, found others: a site has to state which it "
            "measured, and noise on its update does not hide that. Use a `KeyedSum` or `PairwiseSum`, or train on the "
            "modalities that all sites have."
        )
        raise ValueError(msg)
