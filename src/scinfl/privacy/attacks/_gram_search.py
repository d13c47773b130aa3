"""Search for an order and signs by annealing, one move at a time."""

from __future__ import annotations

import numpy as np
from numba import njit

_SIGN_ALONE = 0.25  # share of the moves that turn one sign
_SAME_SIGNS = 0.5  # share of the swaps that keep both signs; the others draw them


@njit(fastmath=True)
def anneal(
    columns: np.ndarray,
    features: np.ndarray,
    single: np.ndarray,
    order: np.ndarray,
    signs: np.ndarray,
    n_steps: int,
    hot: float,
    cold: float,
    generator: np.random.Generator,
) -> None:
    """Improve an order (column → feature) with signs in place, at temperatures that fall geometrically.

    Similarities of columns and of features have a diagonal of zeros; ``single`` is what a column says of a feature by
    itself. A move swaps the features of two columns or turns a sign, and takes O(n).
    """
    n = len(columns)
    signed = columns * signs  # column × column, by the sign of the second
    read = features[:, order]  # feature × column, of the feature that the column reads
    cooling, temperature = (cold / hot) ** (1000 / n_steps), hot
    for step in range(n_steps):
        if step % 1000 == 0:
            temperature *= cooling
        i = int(n * generator.random())
        j = i if generator.random() < _SIGN_ALONE else int(n * generator.random())
        a, b = order[i], order[j]
        if i == j:
            gain = -2 * signs[i] * _dot(signed[i], read[a])
            if gain >= 0 or generator.random() < np.exp(gain / temperature):
                _turn(signed, signs, i)
            continue
        sign_i, sign_j = signs[i], signs[j]
        if generator.random() >= _SAME_SIGNS:
            sign_i = sign_i if generator.random() < 0.5 else -sign_i
            sign_j = sign_j if generator.random() < 0.5 else -sign_j
        link = columns[i, j] * features[a, b]
        now = signs[i] * _dot(signed[i], read[a]) + signs[j] * _dot(signed[j], read[b]) - signs[i] * signs[j] * link
        then = sign_i * _dot(signed[i], read[b]) + sign_j * _dot(signed[j], read[a]) + sign_i * sign_j * link
        gain = then - now + single[i, b] + single[j, a] - single[i, a] - single[j, b]
        if gain >= 0 or generator.random() < np.exp(gain / temperature):
            order[i], order[j] = b, a
            for k in range(n):
                read[k, i], read[k, j] = features[k, b], features[k, a]
            if sign_i != signs[i]:
                _turn(signed, signs, i)
            if sign_j != signs[j]:
                _turn(signed, signs, j)


@njit(fastmath=True)
def _dot(one: np.ndarray, two: np.ndarray) -> np.float32:
    total = np.float32(0)
    for k in range(len(one)):
        total += one[k] * two[k]
    return total


@njit
def _turn(signed: np.ndarray, signs: np.ndarray, i: int) -> None:
    signs[i] = -signs[i]
    for k in range(len(signs)):
        signed[k, i] = -signed[k, i]
