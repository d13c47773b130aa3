"""Read folders of Visium and of Visium HD."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
from anndata import AnnData

from scinfl._checks import first_of, warn
from scinfl._coordinates import in_tissue

_PLACES = "tissue_positions"
_COLUMNS = ["in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]


def read_visium(
    folder: str | os.PathLike[str],
    *,
    bin_size: int | None = None,
    counts_file: str = "filtered_feature_bc_matrix.h5",
    library_id: str | None = None,
) -> AnnData:
    """Read a section from a folder of Space Ranger: Visium, or one size of bins of Visium HD.

    Visium is read by :func:`squidpy.read.visium`. Visium HD has the same files for each size of bins, in
    ``binned_outputs/square_008um`` for example, with positions as a parquet table. Spots or bins outside of the tissue
    (``in_tissue`` is 0, in ``raw_feature_bc_matrix.h5``) are left out with a warning.

    Parameters
    ----------
    folder
        Folder with the counts and ``spatial/``; of Visium HD that of a run, that of its ``binned_outputs``, or that of
        one size of bins.
    bin_size
        Side of a bin in micrometres, where the folder has several.
    counts_file
        ``filtered_feature_bc_matrix.h5``, or the raw one.
    library_id
        Name of the section in ``.uns["spatial"]``; by default the one in the file.

    Returns
    -------
    Annotated data, spots × genes: counts in ``.X``, ``.obs["in_tissue"]``, ``["array_row"]`` and ``["array_col"]``,
    pixels of the full image in ``.obsm["spatial"]``, images and scale factors in ``.uns["spatial"]`` as of squidpy.
    Names of genes are made unique. :func:`join_sections` joins sections.

    Raises
    ------
    FileNotFoundError
        If there are no positions, or no bins of this size.
    ValueError
        If there are several sizes of bins and none was named, or spots without a position.

    References
    ----------
    Palla et al. (2022), Squidpy: a scalable framework for spatial omics analysis, Nature Methods 19:171-178.

    Examples
    --------
    >>> import tempfile, scinfl as si
    >>> folder, _ = si.datasets.visium_simulated(tempfile.mkdtemp(), 2, n_spots=100, bin_size=8)
    >>> adata = si.pp.read_visium(folder)
    >>> list(adata.uns["spatial"].values())[0]["scalefactors"]["bin_size_um"]
    8.0
    """
    import squidpy as sq

    path = _of_bins(Path(folder), bin_size)
    table = path / "spatial" / f"{_PLACES}.parquet"
    adata = sq.read.visium(path, counts_file=counts_file, library_id=library_id, load_images=not table.is_file())
    adata.var_names_make_unique()
    if table.is_file():
        _place_bins(adata, path, table)
    if adata.obs["in_tissue"].isna().any():
        lost = adata.obs_names[adata.obs["in_tissue"].isna()]
        msg = f"Expected a position of every spot, found none of {len(lost)}: {first_of(lost)}. Pass a whole folder."
        raise ValueError(msg)
    inside = in_tissue(adata.obs)
    if outside := int((~inside).sum()):
        warn(f"Left out {outside} of {len(inside)} spots outside of the tissue (in_tissue is 0).")
        adata = adata[inside].copy()
    return adata


def _of_bins(folder: Path, bin_size: int | None) -> Path:
    """Folder with counts and positions."""
    sizes = {int(path.name[7:10]): path for path in [*folder.glob("square_*um"), *folder.glob("*/square_*um")]}
    here = any((folder / "spatial").glob(f"{_PLACES}*")) and not sizes
    if here and (bin_size is None or folder.name == f"square_{bin_size:03d}um"):
        return folder
    found = ", ".join(f"{size} µm" for size in sorted(sizes))
    if not here and not sizes:
        msg = (
            f"Expected '{folder}' to hold 'spatial/{_PLACES}' or bins ('square_008um', …), found neither. Pass the "
            "folder that Space Ranger calls 'outs'."
        )
        raise FileNotFoundError(msg)
    if bin_size is None and len(sizes) > 1:
        msg = f"Expected `bin_size`, since there are bins of {found}. Pass one; 8 suits most analyses."
        raise ValueError(msg)
    if bin_size is not None and bin_size not in sizes:
        msg = f"Expected bins of {bin_size} µm in '{folder}', found {found or 'spots of Visium'}. Change `bin_size`."
        raise FileNotFoundError(msg)
    return sizes[bin_size] if bin_size is not None else next(iter(sizes.values()))


def _place_bins(adata: AnnData, path: Path, table: Path) -> None:
    """Positions, images and scale factors of Visium HD, where squidpy's reader has those of Visium."""
    from matplotlib.image import imread

    places = pd.read_parquet(table).set_index("barcode")[_COLUMNS].reindex(adata.obs_names)
    adata.obs[_COLUMNS[:3]] = places[_COLUMNS[:3]]
    adata.obsm["spatial"] = places[_COLUMNS[:2:-1]].to_numpy(float)
    (library,) = adata.uns["spatial"].values()
    images = {size: path / "spatial" / f"tissue_{size}_image.png" for size in ("hires", "lowres")}
    library["images"] = {size: imread(image) for size, image in images.items() if image.is_file()}
    library["scalefactors"] = json.loads((path / "spatial" / "scalefactors_json.json").read_bytes())
