"""Search of updates for what must never leave a site."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from scinfl._checks import first_of
from scinfl.federation import Update

_WORDS = {
    "coordinates": {"coordinate", "coordinates"},
    "signs": {"sign", "signs"},
    "a permutation": {"permutation", "permutations"},
    "scales": {"scale", "scales"},
    "a key stream": {"keystream", "keystreams", "stream"},
    "a secret": {"key", "keys", "secret", "secrets", "nonce"},
    "a list of labels": {"label", "labels", "classes", "categories"},
}
_STATISTICS = re.compile(r"(^|[._/])(running_(mean|var)|num_batches_tracked)$")
_KINDS = {
    "i": "whole numbers: a permutation, codes of labels or indices",
    "u": "whole numbers: a permutation, a key stream or codes of labels",
    "b": "truth values: a mask of cells or features",
    "U": "text: a list of labels or names",
    "S": "text: a list of labels or names",
    "O": "objects: a list of labels or names",
}
_FEWEST = 16  # values, below which a parameter may equal a secret by chance


class PayloadLinter:
    """Refuses to send what must stay at a site. Runs there, before anything protects the update.

    It looks at names and at values:

    - arrays that are no floating-point numbers (permutations, key streams, codes and lists of labels);
    - running statistics of normalisations, which let an attacker put removed scales back, unless they are allowed;
    - arrays of training outside the share rule, or of another shape than the parameter of that name;
    - in other sums, arrays named after coordinates, signs, permutations, scales, key streams, secrets or labels;
    - arrays of 16 values or more that equal a secret which follows from the key, in any precision and shape.

    It catches mistakes (a buffer that slipped into a state, a layer that was meant to stay), not a malicious
    site: anyone who can change an update can also hide a secret in it. Pickles and copies come without the secrets.

    Parameters
    ----------
    shared
        Shape of each parameter that the share rule lets out, by name; ``None`` where there is no such rule.
    secrets
        What follows from the key at this site (coordinates, signs, permutations, scales), by a name to report.
    allow
        Names of arrays that may leave whatever they are called, unless they equal a secret.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> linter = si.privacy.PayloadLinter({"head.weight": (2, 3)})
    >>> linter.check(si.federation.Update("a", 1, {"head.weight": np.zeros((2, 3))}, 10))
    >>> linter.check(si.federation.Update("a", 1, {"norm.running_mean": np.zeros(3)}, 10))
    Traceback (most recent call last):
    ...
    ValueError: Expected an update of site 'a' without running statistics, found 'norm.running_mean'. ...
    """

    def __init__(
        self,
        shared: Mapping[str, tuple[int, ...]] | None = None,
        *,
        secrets: Mapping[str, np.ndarray] | None = None,
        allow: Collection[str] = (),
    ) -> None:
        self._shared = None if shared is None else {name: tuple(shape) for name, shape in shared.items()}
        self._allow = set(allow)
        by_size: dict[int, dict[str, np.ndarray]] = {}
        for what, values in (secrets or {}).items():
            if values.size >= _FEWEST:
                by_size.setdefault(values.size, {})[what] = np.ravel(values).astype(np.float32)
        self._secrets = {size: (list(own), np.stack([*own.values()])) for size, own in by_size.items()}

    def check(self, update: Update) -> None:
        """Refuse an update that holds what must not leave.

        Parameters
        ----------
        update
            As the site made it.

        Raises
        ------
        ValueError
            Names the array and the cure, never a value.
        """
        for name, array in update.state.items():
            if name not in self._allow:
                self._check_kind(update.site, name, np.asarray(array))
                self._check_name(update, name, np.asarray(array))
            self._check_values(update.site, name, np.asarray(array))

    def _check_kind(self, site: str, name: str, array: np.ndarray) -> None:
        if array.dtype.kind in _KINDS:
            msg = (
                f"Expected floating-point numbers in the update of site '{site}', found in '{name}' "
                f"{_KINDS[array.dtype.kind]}. Keep it at the site; if it is a sum that may leave, turn it into float64."
            )
            raise ValueError(msg)

    def _check_name(self, update: Update, name: str, array: np.ndarray) -> None:
        if _STATISTICS.search(name):
            msg = (
                f"Expected an update of site '{update.site}' without running statistics, found '{name}'. They let an "
                "attacker put removed scales back: keep them at the site (layer normalisation stores none), or name "
                "them in `allow`."
            )
            raise ValueError(msg)
        if self._shared is not None and update.purpose in ("training", "evaluation"):
            self._check_shared(update, name, array.shape, self._shared)
            return
        words = set(re.findall(r"[a-z]+", name.lower()))
        for what, suspect in _WORDS.items():
            if words & suspect:
                msg = (
                    f"Expected sums over cells in the update of site '{update.site}', found '{name}', which is named "
                    f"like {what}. Keep it at the site, or name it in `allow` if it is something else."
                )
                raise ValueError(msg)

    @staticmethod
    def _check_shared(update: Update, name: str, shape: tuple[int, ...], shared: Mapping[str, tuple[int, ...]]) -> None:
        if update.purpose == "evaluation" or name not in shared:
            what = (
                "no array" if update.purpose == "evaluation" else f"the shared parameters ({first_of(sorted(shared))})"
            )
            msg = (
                f"Expected {what} in the update of site '{update.site}' ({update.purpose}), found '{name}'. Keep it at "
                "the site, or let it out by another `share` of `train`."
            )
            raise ValueError(msg)
        if shape != shared[name]:
            msg = (
                f"Expected '{name}' of shape {shared[name]} in the update of site '{update.site}', found {shape}. Send "
                "the parameter alone."
            )
            raise ValueError(msg)

    def _check_values(self, site: str, name: str, array: np.ndarray) -> None:
        if array.dtype.kind not in "fiu" or array.size not in self._secrets:
            return
        names, secrets = self._secrets[array.size]
        flat = np.ravel(array)
        for number in np.flatnonzero(np.isclose(secrets[:, :_FEWEST], flat[:_FEWEST], rtol=1e-4).all(1)):
            if np.allclose(secrets[number], flat, rtol=1e-4):
                msg = (
                    f"Expected parameters in the update of site '{site}', found in '{name}' a secret that follows from "
                    f"the key ({names[number]}). Nothing was sent: find out what put it there, and rotate the key if "
                    "an earlier update held it."
                )
                raise ValueError(msg)

    def __repr__(self) -> str:
        n = None if self._shared is None else len(self._shared)
        return f"PayloadLinter(shared={n}, secrets={sum(len(names) for names, _ in self._secrets.values())})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_secrets": {}}
