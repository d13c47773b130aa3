"""Every name that scinfl writes into AnnData and MuData, and those that jobs and commands share, in one place."""

SITE = "site"
"""Default ``obs`` column of :func:`scinfl.pp.split_sites`."""

OF_SCVI = "scvi."
"""What stands before the name of a class of scvi-tools, in jobs and commands."""

LABEL = "infl_label"
"""``obs``: predicted label."""

PROBABILITY = "infl_probability"
"""``obsm``: probability of each label (cells × labels)."""

EMBEDDING = "X_infl"
"""``obsm``: latent representation."""

UNS = "infl"
"""``uns``: settings of each function, under the function's name."""

UNASSIGNED = "unassigned"
"""Label of a cell whose best probability is below the requested confidence."""

PERTURBATION = "infl_perturbation"
"""``obs``: canonical name of the perturbation of a cell."""

SPLIT = "infl_split"
"""``obs``: ``"train"``, ``"val"`` or ``"test"``."""

DOMAIN = "infl_domain"
"""``obs``: spatial domain."""

MEASURED = "infl_measured"
"""``varm``: whether each section measured a feature (features × sections)."""

IMPUTED_BY = "infl_imputed_by"
"""``obs``: what imputed the values of a spot."""

CLASS_MEANS = "infl_class_means"
"""``varm``: mean of each feature in each class over all sites (features × classes)."""

SHAP = "infl_shap"
"""``obsm``: SHAP values (cells × features × labels); ``varm``: their mean size (features × labels)."""

FEATURE_TYPES = "feature_types"
"""``var``: modality of each feature, in the words of 10x Genomics."""

GENES, PEAKS, PROTEINS = "Gene Expression", "Peaks", "Antibody Capture"
"""Modalities, in the order that models of several read them in."""
