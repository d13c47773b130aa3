"""Real data at hand."""

from scinfl.datasets._bundled import pbmc
from scinfl.datasets._perturbseq import perturbseq_simulated
from scinfl.datasets._tcga import tcga_proteins

__all__ = ["pbmc", "perturbseq_simulated", "tcga_proteins"]
