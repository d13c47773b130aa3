"""What the audit finds in GEARS (generated screen, four sites) and SpaMosaic (STARmap, three sites), keyed.

Prints every finding beside its baseline, the words for each adversary, and seconds.

    python benchmarks/audit_models.py [--quick] [--model GEARS|SpaMosaic]
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

import anndata as ad
import pandas as pd

import scinfl as si

SHARED = Path(os.environ.get("SCINFL_SHARED", Path(__file__).parents[2] / "shared"))


def screen(key):
    """A trained GEARS, its data, and how it was trained."""
    adata = si.datasets.perturbseq_simulated(rng=0)
    si.pp.split_sites(adata, n_sites=4, rng=0)
    si.pp.perturbations(adata)
    si.pp.split_perturbations(adata, rng=0)
    si.model.GEARS.setup_anndata(adata, site_key="site")
    model = si.model.GEARS(adata, gene_ontology=adata.uns["gene_terms"])
    train = {"n_rounds": 20, "loss": "squared"}
    model.train(**train, key=key, progress=False)
    return adata, model, {"train": train}


def sections(key):
    """A trained SpaMosaic, its data, and how it was trained."""
    adata = ad.read_h5ad(SHARED / "data" / "spatial" / "starmap_mpfc_3slices_labelled.h5ad")
    si.model.SpaMosaic.setup_anndata(adata, section_key="slice", site_key="slice")
    model = si.model.SpaMosaic(adata)
    model.train(key=key, progress=False)
    return adata, model, {"attributes": ["z"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", choices=["GEARS", "SpaMosaic"])
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    pd.set_option("display.width", 220, "display.max_rows", 500, "display.max_columns", 20, "display.max_colwidth", 60)
    for name, make in (("GEARS", screen), ("SpaMosaic", sections)):
        if options.model not in (None, name):
            continue
        key = si.privacy.Key.generate()
        adata, model, arguments = make(key)
        started = time.perf_counter()
        si.tl.audit(adata, model, key=key, quick=options.quick, progress=False, **arguments)
        found = adata.uns["infl"]["audit"]
        print(f"{name}: {time.perf_counter() - started:.0f} s\n")
        columns = ["family", "attack", "setting", "adversary", "uploads", "metric", "score", "low", "high", "baseline"]
        print(found["table"][[*columns, "baseline_name", "verdict"]].round(3).to_string(index=False))
        for adversary, words in found["verdicts"].items():
            print(f"\n{adversary}: {words}")
        print()


if __name__ == "__main__":
    main()
