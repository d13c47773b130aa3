"""Cancer proteins and micro-RNAs from real hospitals."""

from __future__ import annotations

import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData

from scinfl._checks import first_of, obs_column
from scinfl.datasets._archive import existing, readable
from scinfl.datasets._download import fetch, server
from scinfl.datasets._tcga_regions import UNMAPPED, regions

# of the PanCanAtlas publications (https://gdc.cancer.gov/about-data/publications/pancanatlas), hashes of its manifest
_PROTEINS = ("fcbb373e-28d4-4818-92f3-601ede3da5e1", "TCGA-RPPA-pancan-clean.txt")
_MIRNA = (
    "1c6174d9-8ffb-466e-b5ee-07b204c15cf8",
    "pancanMiRs_EBadjOnProtocolPlatformWithoutRepsWithUnCorrectMiRs_08_04_16.csv",
)
_SAMPLES = ("55d9bf6f-0712-4315-b588-e6f8e295018e", "PanCanAtlas_miRNA_sample_information_list.txt")
_HASHES = {
    _PROTEINS[1]: "md5:e2b914c7ecd369589275d546d9555b05",
    _MIRNA[1]: "md5:c7501dc3c505ca172a6a05b611bd11c3",
    _SAMPLES[1]: "md5:02bb56712be34bcd58c50d90387aebde",
}
_COMBINED = {"COADREAD", "GBMLGG", "KIPAN", "STES", "FPPP"}  # cohorts of RTCGA that repeat others
_NORMAL = ("10", "11", "12", "13", "14")  # sample types of tissue without tumour


def tcga_proteins(
    path: str | os.PathLike[str] | None = None,
    *,
    complete: bool = True,
    site_key: str | None = "region",
    progress: bool = True,
) -> AnnData:
    """Reverse-phase protein arrays of The Cancer Genome Atlas, ready for a federation of hospitals.

    Without a path the table of the PanCanAtlas is downloaded once from the Genomic Data Commons (19 MB, open access, no
    login; Hoadley et al., Cell 173:291, 2018; its hash is that of the published manifest): about 7,700 samples × 198
    proteins of 32 cancers, with batches of arrays corrected across cancers.

    **It is not the table of our benchmarks**, and results on it differ. That one holds the arrays of the R package
    RTCGA.RPPA (6,777 samples × 285 proteins of 31 cancers), each cancer centred on its own median, which makes the task
    harder: differences in level between cancers are gone. Rebuild it with the two lines of R in the guide to data sets,
    and pass its folder as ``path``.

    Parameters
    ----------
    path
        The table that you have: the file of the PanCanAtlas (``TCGA-RPPA-pancan-clean.txt``), the folder with the
        tables of RTCGA.RPPA (``BRCA.RPPA.csv``, …), or an h5ad file that holds samples × proteins with the columns
        ``cancer``, ``patient``, ``region`` in ``.obs`` and ``in_all_cancers`` in ``.var``. Nothing is downloaded then.
    complete
        Keep the proteins that were measured in every cancer and lack no value (120 of the 285 of RTCGA). Which other
        proteins are missing identifies the cohort, so a classifier would learn that instead of biology.
    site_key
        Column that will serve as site; samples without (``"unmapped"``) are dropped, which leaves the cancers whose
        hospitals are placed. ``None`` keeps all samples.
    progress
        Show a progress bar of the download.

    Returns
    -------
    Annotated data that owns its values, float32. ``.obs`` has ``cancer``, and from the barcode ``patient``, ``tss``
    (the hospital's code; each has sent one cancer only, so it makes no site), ``sample_type`` (``"01"`` primary,
    ``"06"`` metastatic tumour), ``plate`` and ``region``: where the hospital is, seven regions.

    Raises
    ------
    ConnectionError
        If the file cannot be downloaded; the message states where to put it by hand.
    FileNotFoundError
        If there is nothing at ``path``.
    KeyError
        If there is no such column.
    ValueError
        If the file is damaged, was changed, or is another one.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.tcga_proteins()  # doctest: +SKIP
    >>> si.model.Classifier.setup_anndata(
    ...     adata, labels_key="cancer", site_key="region", group_key="patient"
    ... )  # doctest: +SKIP
    """
    if path is None:
        adata = _read_proteins(_fetched(_PROTEINS, progress=progress))
    elif Path(path).is_dir():
        adata = _read_rtcga(Path(path))
    else:
        file = existing(path, "the TCGA protein table")
        adata = ad.read_h5ad(file) if file.suffix == ".h5ad" else _read_proteins(file)
    whole = adata.var["in_all_cancers"].to_numpy(bool) if complete else np.ones(adata.n_vars, bool)
    return _ready(adata, whole, site_key, complete=complete)


def tcga_mirna(
    path: str | os.PathLike[str] | None = None,
    *,
    samples: str | os.PathLike[str] | None = None,
    complete: bool = True,
    site_key: str | None = "region",
    normal: bool = False,
    progress: bool = True,
) -> AnnData:
    r"""Micro-RNAs of The Cancer Genome Atlas, ready for a federation of hospitals.

    Without a path the table of the PanCanAtlas is downloaded once from the Genomic Data Commons (67 MB, open access, no
    login; Hoadley et al., Cell 173:291, 2018; hashes are those of the published manifest): about 10,800 samples of 33
    cancers × 743 mature micro-RNAs, corrected for protocol and platform; 81 of them could not be corrected.

    Parameters
    ----------
    path
        The table that you have: the csv file of the PanCanAtlas, or an h5ad file that holds samples × micro-RNAs with
        ``cancer``, ``sample_type`` and ``region`` in ``.obs``. Nothing is downloaded then.
    samples
        List of samples that goes with the csv file (``PanCanAtlas_miRNA_sample_information_list.txt``, 0.6 MB), which
        names their cancers; downloaded unless you pass it. Samples that it does not name are dropped.
    complete
        Keep the micro-RNAs that were corrected and lack no value.
    site_key
        Column that will serve as site; samples without (``"unmapped"``) are dropped, which leaves the cancers whose
        hospitals are placed. ``None`` keeps all samples.
    normal
        Keep samples of normal tissue too: their ``cancer`` is the one of the neighbouring tumour.
    progress
        Show a progress bar of the download.

    Returns
    -------
    Annotated data that owns its values, float32: :math:`\log_2(1 + x)` of the published abundances, those below 0
    (after the correction) taken for 0. ``.obs`` as in :func:`tcga_proteins`; ``.var["corrected"]``.

    Raises
    ------
    ConnectionError
        If a file cannot be downloaded; the message states where to put it by hand.
    FileNotFoundError
        If there is nothing at ``path`` or ``samples``.
    KeyError
        If there is no such column.
    ValueError
        If a file is damaged, was changed, or is another one.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.tcga_mirna()  # doctest: +SKIP
    >>> adata.obs["cancer"].nunique()  # doctest: +SKIP
    9
    """
    file = None if path is None else existing(path, "the TCGA micro-RNA table")
    if file is not None and file.suffix == ".h5ad":
        adata = ad.read_h5ad(file)
    else:
        table = _fetched(_MIRNA, progress=progress) if file is None else file
        where = _fetched(_SAMPLES, progress=progress) if samples is None else existing(samples, "the list of samples")
        adata = _read_mirna(table, where)
    if not normal:
        adata = adata[~obs_column(adata, "sample_type", "normal").isin(_NORMAL).to_numpy()]
    whole = np.ones(adata.n_vars, bool)
    if complete and "corrected" in adata.var:
        whole = adata.var["corrected"].to_numpy(bool)
    return _ready(adata, whole, site_key, complete=complete)


def _fetched(file: tuple[str, str], *, progress: bool) -> Path:
    uuid, name = file
    return fetch(f"{server('gdc')}/data/{uuid}", name, known_hash=_HASHES.get(name), progress=progress)


def _ready(adata: AnnData, whole: np.ndarray, site_key: str | None, *, complete: bool) -> AnnData:
    """Samples with a site, features that are wanted, values of its own."""
    if site_key is not None:
        adata = adata[(obs_column(adata, site_key, "site_key") != UNMAPPED).to_numpy()]
    if complete:
        adata = adata[:, whole & ~np.isnan(adata.X).any(0)]
    adata = adata.copy()
    adata.X = np.ascontiguousarray(adata.X, dtype=np.float32)
    for column in adata.obs.select_dtypes("category"):
        adata.obs[column] = adata.obs[column].cat.remove_unused_categories()
    return adata


def _read_proteins(path: Path) -> AnnData:
    """Table of the PanCanAtlas: samples × (SampleID, TumorType, proteins)."""
    with readable(path, "the TCGA protein table of the PanCanAtlas", ValueError, KeyError, OSError):
        table = pd.read_csv(path, sep="\t").set_index("SampleID")
        cancer = table.pop("TumorType").astype(str)
        return _proteins(table.astype(np.float32), cancer)


def _read_rtcga(folder: Path) -> AnnData:
    """Tables of RTCGA.RPPA, one per cancer: samples × (barcode, proteins)."""
    files = {path.name.partition(".")[0]: path for path in sorted(folder.glob("*.csv"))}
    files = {cancer: path for cancer, path in files.items() if cancer not in _COMBINED}
    if not files:
        found = first_of(sorted(path.name for path in folder.iterdir())) or "nothing"
        msg = (
            f"Expected the tables of RTCGA.RPPA, such as 'BRCA.RPPA.csv', in '{folder}', found {found}. Pass the "
            "folder that R wrote them to."
        )
        raise FileNotFoundError(msg)
    tables = {}
    for cancer, path in files.items():
        with readable(path, "a table of RTCGA.RPPA", ValueError, KeyError, OSError):
            tables[cancer] = pd.read_csv(path).set_index("bcr_patient_barcode").astype(np.float32)
    table = pd.concat(tables.values())
    cancers = np.repeat(list(tables), [len(rows) for rows in tables.values()])
    return _proteins(table[sorted(table.columns)], pd.Series(cancers, table.index))


def _proteins(table: pd.DataFrame, cancer: pd.Series) -> AnnData:
    measured = table.notna().groupby(cancer.to_numpy()).any().sum()
    var = pd.DataFrame({"n_cancers_measured": measured, "in_all_cancers": measured == cancer.nunique()})
    return AnnData(table.to_numpy(), _describe(table.index, cancer), var.loc[table.columns])


def _read_mirna(path: Path, samples: Path) -> AnnData:
    """Table of the PanCanAtlas: micro-RNAs × (Genes, Correction, samples)."""
    with readable(path, "the TCGA micro-RNA table of the PanCanAtlas", ValueError, KeyError, OSError):
        table = pd.read_csv(path).set_index("Genes")
        corrected = table.pop("Correction") == "Corrected"
        values = np.log2(1 + table.to_numpy(np.float32).clip(min=0)).T
    with readable(samples, "the list of samples with the columns id and Disease", ValueError, KeyError, OSError):
        cancer = pd.read_csv(samples, sep="\t", dtype=str).drop_duplicates("id").set_index("id")["Disease"]
    cancer = cancer.reindex(table.columns)
    named = cancer.notna().to_numpy()
    var = pd.DataFrame({"corrected": corrected.to_numpy()}, index=table.index.astype(str)).rename_axis(None)
    return AnnData(values[named], _describe(table.columns[named], cancer[named]), var)


def _describe(barcodes: pd.Index, cancer: pd.Series) -> pd.DataFrame:
    """Parts of a barcode: TCGA-TSS-PARTICIPANT-SAMPLE+VIAL-PORTION-PLATE-CENTRE, and where the hospital is."""
    parts = barcodes.to_series().str.split("-", expand=True).reindex(columns=range(6)).fillna("")
    obs = pd.DataFrame(
        {
            "cancer": cancer.to_numpy(),
            "patient": parts[[0, 1, 2]].agg("-".join, axis=1),
            "tss": parts[1],
            "sample_type": parts[3].str[:2],
            "plate": parts[5],
            "region": parts[1].map(regions()).fillna(UNMAPPED),
        }
    )
    obs.index = pd.Index(barcodes.astype(str), name=None)
    return obs.astype("category")
