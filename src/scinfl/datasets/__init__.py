"""Real data at hand, and published data to fetch."""

from scinfl.datasets._bundled import pbmc
from scinfl.datasets._huvec import huvec
from scinfl.datasets._mixology import cell_mixtures
from scinfl.datasets._mosaic import mosaic_simulated
from scinfl.datasets._perturbseq import perturbseq_simulated
from scinfl.datasets._public import adamson, dixit, gene_ontology, norman, replogle_k562, replogle_rpe1
from scinfl.datasets._screens import mcfaline, norman_subset, papalexi
from scinfl.datasets._spamosaic import spamosaic
from scinfl.datasets._tcga import tcga_mirna, tcga_proteins
from scinfl.datasets._visium import visium_simulated

__all__ = [
    "adamson",
    "cell_mixtures",
    "dixit",
    "gene_ontology",
    "huvec",
    "mcfaline",
    "mosaic_simulated",
    "norman",
    "norman_subset",
    "papalexi",
    "pbmc",
    "perturbseq_simulated",
    "replogle_k562",
    "replogle_rpe1",
    "spamosaic",
    "tcga_mirna",
    "tcga_proteins",
    "visium_simulated",
]
