"""What a site knows of its cells: moments per condition, in place of the cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from scinfl.metrics import rank_genes, top_genes
from scinfl.model.base._cells import Matrix

_ROWS = 4096
N_TOP = 20


@dataclass(frozen=True)
class Moments:
    r"""Moments of the change :math:`r = y - x` of cells :math:`y` against controls :math:`x`, float64.

    Cells and controls are independent, so the central moments of r follow from theirs:

    .. math::
        m_2 = m_2^y + m_2^x, \qquad m_3 = m_3^y - m_3^x, \qquad m_4 = m_4^y + 6 m_2^y m_2^x + m_4^x

    Controls are their own targets: all their moments are 0.
    """

    n_cells: np.ndarray  # cells of each condition
    mean: np.ndarray  # conditions × genes, as the others
    variance: np.ndarray  # and further central moments
    third: np.ndarray
    fourth: np.ndarray
    expressed: np.ndarray  # genes with a non-zero mean in the condition; all of them for controls
    top: np.ndarray  # indices of the 20 most differential genes; −1 where there are fewer, and for controls
    noise: np.ndarray  # variance of the mean of the controls

    def __len__(self) -> int:
        return len(self.n_cells)

    @classmethod
    def of(cls, matrix: Matrix, rows: Sequence[np.ndarray], controls: Sequence[np.ndarray]) -> Moments:
        """Moments of conditions."""
        known: dict[int, np.ndarray] = {}
        parts = []
        for own, base in zip(rows, controls, strict=True):
            if id(base) not in known:
                known[id(base)] = central_moments(matrix, base)
            parts.append(
                _change(central_moments(matrix, own), len(own), known[id(base)], len(base)) if len(own) else None
            )
        n_genes = matrix.shape[1]
        if not parts:
            empty = np.zeros((0, n_genes))
            no_top = np.zeros((0, N_TOP), int)
            return cls(np.zeros(0, int), empty, empty, empty, empty, empty.astype(bool), no_top, empty)
        none = (np.zeros((4, n_genes)), np.ones(n_genes, bool), np.full(N_TOP, -1))
        values, expressed, top = zip(*(none if part is None else part for part in parts), strict=True)
        mean, variance, third, fourth = np.stack(values, axis=1)
        n_cells = np.array([len(own) if len(own) else len(base) for own, base in zip(rows, controls, strict=True)])
        noise = np.stack([known[id(base)][1] / max(len(base) - 1, 1) for base in controls])
        return cls(n_cells, mean, variance, third, fourth, np.stack(expressed), np.stack(top), noise)


def central_moments(matrix: Matrix, rows: np.ndarray) -> np.ndarray:
    """Mean and second to fourth central moment of some cells (4 × genes, float64)."""
    result = np.zeros((4, matrix.shape[1]))
    for block in _blocks(matrix, rows):
        result[0] += block.sum(0, dtype=np.float64)
    result[0] /= len(rows)
    for block in _blocks(matrix, rows):
        deviation = block - result[0]
        power = np.square(deviation)
        result[1] += power.sum(0)
        deviation *= power
        result[2] += deviation.sum(0)
        np.square(power, out=power)
        result[3] += power.sum(0)
    result[1:] /= len(rows)
    return result


def _blocks(matrix: Matrix, rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _ROWS):
        block = matrix[rows[start : start + _ROWS]]
        yield block.toarray() if sparse.issparse(block) else np.asarray(block)


def _change(y: np.ndarray, n: int, x: np.ndarray, n_base: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Moments of the change, expressed genes, and the most differential ones."""
    values = np.stack([y[0] - x[0], y[1] + x[1], y[2] - x[2], y[3] + 6 * y[1] * x[1] + x[3]])
    unbiased, base = (m[1] * (count / max(count - 1, 1)) for m, count in ((y, n), (x, n_base)))
    order = rank_genes(y[None, 0], unbiased[None], np.array([n]), x[0], base, n_base)
    top = top_genes(order, y[None, 0], x[0], N_TOP)["top_de"][0]
    return values, y[0] != 0, top
