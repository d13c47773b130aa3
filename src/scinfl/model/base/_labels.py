"""Which labels a classifier can be trained on, and in what order networks have labels and sites."""

from __future__ import annotations

import warnings
from typing import Any

import pandas as pd
from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LabelsWithUnlabeledObsField

from scinfl._checks import first_of, is_continuous, missing, of_one_type, told_apart, warn
from scinfl._spelling import argument


def check_labels(
    labels: pd.Series, sites: pd.Series, labels_key: str, unlabeled_category: str | None, *, at_least: int
) -> None:
    """Refuse rows without a label and too few labels; warn of a column that does not look like labels."""
    absent = missing(labels)
    if unlabeled_category is not None:
        absent &= labels.isna() | (labels.astype(str) != str(unlabeled_category))
    if absent.any():
        by_site = absent.groupby(sites.astype(str).to_numpy()).sum()
        where = first_of([f"{int(n)} at site '{site}'" for site, n in by_site.items() if n])
        msg = (
            f"Expected a label for every row in adata.obs['{labels_key}'], found {int(absent.sum())} without: "
            f"{where}. Drop these rows, or give them a category and name it as {argument('unlabeled_category')}."
        )
        raise ValueError(msg)
    classes = set(labels.astype(str)) - {str(unlabeled_category)}
    if len(classes) < at_least:
        found = sorted(classes)
        msg = f"Expected at least {at_least} labels in adata.obs['{labels_key}'], found {len(found)}: {found}."
        raise ValueError(msg)
    of_one_type(labels, f"adata.obs['{labels_key}']")
    told_apart(labels, f"adata.obs['{labels_key}']")
    if unlabeled_category is not None:
        _check_unlabeled(labels, labels_key, unlabeled_category)
    if is_continuous(labels):
        warn(
            f"Expected labels that many rows share in adata.obs['{labels_key}'], found continuous values or a label of "
            f"its own for most rows ({len(classes)} labels for {len(labels)} rows). Name the column of labels with "
            f"{argument('labels_key')}."
        )


def _check_unlabeled(labels: pd.Series, labels_key: str, unlabeled_category: Any) -> None:
    """Refuse a name of cells without a label that is none of the labels' type, or is spelled otherwise among them."""
    found = labels.dropna().unique().tolist()
    if found and isinstance(found[0], str) != isinstance(unlabeled_category, str):
        msg = (
            f"Expected {argument('unlabeled_category')} of the type of the labels in adata.obs['{labels_key}'], found "
            f"{unlabeled_category!r} and labels such as {found[0]!r}. Make them text with "
            f"`adata.obs['{labels_key}'] = adata.obs['{labels_key}'].astype(str)`."
        )
        raise ValueError(msg)
    name = str(unlabeled_category)
    near = [label for label in map(str, found) if label != name and label.casefold() == name.casefold()]
    if near and name not in map(str, found):
        msg = (
            f"Expected cells without a label to be {name!r} in adata.obs['{labels_key}'], found {first_of(near)}, "
            f"which would be learned as a label. Spell {argument('unlabeled_category')} as the column does."
        )
        raise ValueError(msg)


def check_known_labels(labels: pd.Series, known: list[str] | None, labels_key: str) -> None:
    """Refuse labels that the other data set does not have."""
    found = labels.astype(str).value_counts()
    if known is not None and (unknown := sorted(set(found.index[found > 0]) - set(known))):
        msg = (
            f"Expected labels of the model in adata.obs['{labels_key}'], found {len(unknown)} others "
            f"({int(found[unknown].sum())} rows): {first_of(unknown)}. The network has no output for them: drop or "
            "rename these rows, or train a new model with all labels."
        )
        raise ValueError(msg)


def ordered_field(name: str, column: str | None, unlabeled_category: str | None = None) -> CategoricalObsField:
    """Field of a column in the order of its text, unlabelled rows last.

    The order of the categories of one file is not that of another: without an order of its own, the network of sites
    on several machines would not be that of one process.
    """
    if column is None:
        return CategoricalObsField(name, None)
    if unlabeled_category is None:
        return _Ordered(name, column)
    return _PartlyOrdered(name, column, unlabeled_category)


def register(manager: AnnDataManager, adata: AnnData, **kwargs: Any) -> None:
    """Register data, without a warning of rare labels that names a column of scvi-tools' own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Category .* has fewer than 3 cells")
        manager.register_fields(adata, **kwargs)


class _Ordered(CategoricalObsField):
    _unlabeled_category: Any = None

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Register as with a registry that lists the categories that occur in order."""
        column = adata.obs[self._original_attr_key].astype("category")
        found = column.cat.remove_unused_categories().cat.categories
        order = sorted(range(len(found)), key=lambda i: (found[i] == self._unlabeled_category, str(found[i])))
        return self.transfer_field({self.CATEGORICAL_MAPPING_KEY: found[order].to_numpy(copy=True)}, adata)


class _PartlyOrdered(_Ordered, LabelsWithUnlabeledObsField):
    pass
