"""Folders of Visium sections as Space Ranger writes them, generated."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.spatial import KDTree

from scinfl._checks import one_of, whole_number
from scinfl.datasets._mosaic import SPACING, mosaic_simulated

_PIXEL = 2.0  # micrometres per pixel of the full image
_SPOT = 55.0
_RIM = 3  # positions beside the tissue
_IMAGES = {"hires": 0.4, "lowres": 0.1}  # their scale, against the full image
_GLASS, _STAIN = (0.96, 0.95, 0.96), ((0.90, 0.72, 0.82), (0.62, 0.42, 0.66))


def visium_simulated(
    folder: str | os.PathLike[str],
    n_sections: int = 3,
    *,
    bin_size: int | None = None,
    n_spots: int = 900,
    n_genes: int = 300,
    n_domains: int = 6,
    rng: int = 0,
) -> list[Path]:
    """Write generated sections of one tissue as folders of Visium or Visium HD, with images and an annotation.

    The tissue is that of :func:`mosaic_simulated` with RNA that separates all domains (``faint=1``). Each section is a
    folder as Space Ranger writes it: counts in the tissue (``filtered_feature_bc_matrix.h5``) and of all positions
    (``raw_…``), ``spatial/`` with positions, scale factors and an image in two sizes, whose stain follows the domains.
    Beside them, ``annotation.csv`` has the domain of each spot in tissue, as a pathologist would export it.
    :func:`scinfl.pp.read_visium` reads the folders, for tutorials and tests that anybody can run.

    Parameters
    ----------
    folder
        Where the folders ``section_1``, … are written.
    n_sections
        Sections.
    bin_size
        Write Visium HD with bins of so many micrometres, 2, 8 or 16: a square lattice, in
        ``binned_outputs/square_008um``, with positions as a parquet table. By default Visium: spots on a hexagonal
        lattice, 100 µm apart.
    n_spots
        Spots or bins of tissue in a section.
    n_genes, n_domains, rng
        See :func:`mosaic_simulated`.

    Returns
    -------
    The folders of the sections.

    Raises
    ------
    FileExistsError
        If there is a section in the folder.
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> import tempfile, scinfl as si
    >>> folder, _ = si.datasets.visium_simulated(tempfile.mkdtemp(), 2, n_spots=100)
    >>> sorted(path.name for path in folder.iterdir())
    ['annotation.csv', 'filtered_feature_bc_matrix.h5', 'raw_feature_bc_matrix.h5', 'spatial']
    >>> si.pp.read_visium(folder).obs["in_tissue"].sum()
    np.int64(100)
    """
    whole_number("n_sections", n_sections, 1)
    if bin_size is not None:
        one_of("bin_size", bin_size, [2, 8, 16])
    tissue = mosaic_simulated(
        n_sections, n_spots=n_spots, modalities=["rna"], n_genes=n_genes, n_domains=n_domains, faint=1.0, rng=rng
    )["rna"]
    paths = []
    for number, section in enumerate(tissue.obs["section"].cat.categories):
        paths.append(Path(folder) / section)
        paths[-1].mkdir(parents=True)
        own = tissue[tissue.obs["section"] == section]
        _write(paths[-1], own, bin_size, np.random.default_rng([rng, number]))
    return paths


def _write(section: Path, tissue: AnnData, bin_size: int | None, generator: np.random.Generator) -> None:
    path = section if bin_size is None else section / "binned_outputs" / f"square_{bin_size:03d}um"
    places, inside = _places(tissue.obsm["spatial"], bin_size)
    (path / "spatial").mkdir(parents=True)
    around = generator.poisson(0.3, (int((~inside).sum()), tissue.n_vars))  # RNA that drifted off the tissue
    raw = sparse.vstack([tissue.X, sparse.csr_matrix(around)], format="csr")
    for kind, counts, barcodes in (("filtered", tissue.X, places.index[inside]), ("raw", raw, places.index)):
        file = path / f"{kind}_feature_bc_matrix.h5"
        _write_counts(file, counts, barcodes, tissue.var_names, section.name)
    if bin_size is None:
        places.to_csv(path / "spatial" / "tissue_positions.csv")
        factors = {"spot_diameter_fullres": _SPOT / _PIXEL}
    else:
        places.reset_index().to_parquet(path / "spatial" / "tissue_positions.parquet")
        pixel = places["pxl_row_in_fullres"].max() / places["array_row"].max()
        factors = {
            "spot_diameter_fullres": pixel,
            "bin_size_um": float(bin_size),
            "microns_per_pixel": bin_size / pixel,
        }
    factors |= {f"tissue_{name}_scalef": scale for name, scale in _IMAGES.items()}
    (path / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    domains = tissue.obs["domain"]
    pixels = places[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()
    for name, scale in _IMAGES.items():
        _write_image(path / "spatial" / f"tissue_{name}_image.png", pixels * scale, domains.cat.codes, generator)
    annotation = pd.DataFrame({"domain": domains.to_numpy()}, places.index[inside])
    annotation.to_csv(section / "annotation.csv")


def _places(spots: np.ndarray, bin_size: int | None) -> tuple[pd.DataFrame, np.ndarray]:
    """All positions, those of the tissue first, and which these are."""
    row = np.rint(spots[:, 1] / (SPACING * np.sqrt(0.75))).astype(int)
    column = np.rint(2 * spots[:, 0] / SPACING).astype(int)  # two steps from spot to spot, odd in every other row
    column += (row[0] + column[0]) % 2
    if bin_size is not None:
        column = column // 2
    taken = set(zip(row, column, strict=True))
    every = np.indices((row.max() + 2 * _RIM + 1, column.max() + 2 * _RIM + 1)).reshape(2, -1).T
    on_lattice = every if bin_size is not None else every[every.sum(1) % 2 == 0]
    outside = [place for place in map(tuple, on_lattice - _RIM) if place not in taken]
    array = np.concatenate([np.column_stack([row, column]), np.array(outside)]) + _RIM
    step = np.array([SPACING * np.sqrt(0.75), SPACING / 2]) if bin_size is None else np.array([SPACING, SPACING])
    pixels = np.rint((array + 1) * step / _PIXEL).astype(int)
    inside = np.arange(len(array)) < len(spots)
    kind = "SPOT{:04d}_{:04d}-1" if bin_size is None else f"s_{bin_size:03d}um_" + "{:05d}_{:05d}-1"
    names = pd.Index([kind.format(*place) for place in array], name="barcode")
    columns = {"in_tissue": inside.astype(int), "array_row": array[:, 0], "array_col": array[:, 1]}
    columns |= {"pxl_row_in_fullres": pixels[:, 0], "pxl_col_in_fullres": pixels[:, 1]}
    return pd.DataFrame(columns, names), inside


def _write_counts(path: Path, counts: sparse.csr_matrix, barcodes: pd.Index, genes: pd.Index, name: str) -> None:
    """A matrix in the format of 10x, version 3."""
    import h5py

    matrix = sparse.csr_matrix(counts, dtype=np.int32)  # rows of spots are columns of the file
    with h5py.File(path, "w") as file:
        file.attrs["library_ids"] = np.array([name], "S")
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, "S")
        group["data"], group["indices"], group["indptr"] = matrix.data, matrix.indices, matrix.indptr
        group["shape"] = np.array(matrix.shape[::-1])
        features = group.create_group("features")
        features["id"] = features["name"] = np.array(genes, "S")
        features["feature_type"] = np.array(["Gene Expression"] * len(genes), "S")
        features["genome"] = np.array(["simulated"] * len(genes), "S")


def _write_image(path: Path, pixels: np.ndarray, domains: pd.Series, generator: np.random.Generator) -> None:
    """A stain that is darker in later domains, with grain, on glass."""
    from matplotlib.image import imsave

    height, width = np.ceil(pixels[:, ::-1].max(0) + pixels[:, ::-1].min(0)).astype(int)
    points = np.indices((height, width)).reshape(2, -1).T[:, ::-1]
    distance, nearest = KDTree(pixels).query(points, k=3)
    weight = 1 / (distance + 1e-3)
    stained = np.append((domains.to_numpy() + 1) / domains.max(), np.zeros(len(pixels) - len(domains)))[nearest]
    cover = np.average(nearest < len(domains), axis=1, weights=weight)[:, None]
    shade = np.average(stained, axis=1, weights=weight)[:, None] + 0.25 * generator.normal(size=(len(points), 1))
    light, dark = map(np.array, _STAIN)
    picture = cover * (light + np.clip(shade, 0, 1) * (dark - light)) + (1 - cover) * np.array(_GLASS)
    imsave(path, np.clip(picture, 0, 1).reshape(height, width, 3))
