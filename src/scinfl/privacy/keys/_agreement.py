"""Which version of the key all sites hold."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from scinfl._checks import first_of

logger = logging.getLogger(__name__)

Offer = Mapping[int, str]
"""Fingerprint of every version of the key that a site holds: public."""


def agree_version(offers: Mapping[str, Offer]) -> int:
    """The newest version of the key that all sites hold. Holds no secret: a server can find it.

    Parameters
    ----------
    offers
        Fingerprint of every version that a site holds, by site, see :meth:`KeyRing.offer`.

    Raises
    ------
    ValueError
        If no version is common, or the keys of one version differ.

    Examples
    --------
    >>> import scinfl as si
    >>> si.privacy.agree_version({"a": {1: "0a", 2: "5c"}, "b": {1: "0a", 2: "5c"}, "c": {1: "0a"}})
    1
    """
    if not offers:
        msg = "Expected the versions of at least one site, found none."
        raise ValueError(msg)
    newest = max((version for offer in offers.values() for version in offer), default=1)
    behind = [
        f"'{site}' ({', '.join(f'version {version}' for version in sorted(offer)) or 'none'})"
        for site, offer in offers.items()
        if newest not in offer
    ]
    common = set.intersection(*(set(offer) for offer in offers.values()))
    if not common:
        msg = (
            f"Expected the key of version {newest} at every site, found others at {first_of(behind)}. Send these sites "
            "the wrapped key (`scinfl key wrap`), and let them open it (`scinfl key unwrap`)."
        )
        raise ValueError(msg)
    version = max(common)
    sites: dict[str, list[str]] = {}
    for site, offer in offers.items():
        sites.setdefault(offer[version], []).append(site)
    if len(sites) > 1:
        found = "; ".join(f"{fingerprint} at {first_of(names)}" for fingerprint, names in sites.items())
        msg = (
            f"Expected one key of version {version} at all sites, found {len(sites)}: {found}. Two sites rotated at "
            "once, or one has a foreign key: rotate once more, at one site."
        )
        raise ValueError(msg)
    if behind:
        logger.warning("Going on with version %d of the key: %s lack version %d.", version, first_of(behind), newest)
    return version
