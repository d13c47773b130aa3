"""Real data at hand."""

from scinfl.datasets._bundled import pbmc
from scinfl.datasets._tcga import tcga_proteins

__all__ = ["pbmc", "tcga_proteins"]
