"""Draw the figure of every plot function in the reference, on data that anybody has; `make figures` stores them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes

import scinfl as si

FOLDER = Path(__file__).parent / "_static" / "pl"
KEY = si.privacy.Key(bytes(range(32)), federation="figures")
Drawn = dict[str, Callable[[], Axes]]


def blood() -> tuple[AnnData, AnnData, AnnData]:
    """Blood cells of four sites: all, to train on, held out."""
    adata = si.datasets.pbmc()
    si.pp.split_sites(adata, n_sites=4, by="bulk_labels", alpha=1.0, rng=0)
    held_out = np.random.default_rng(0).random(adata.n_obs) < 0.25
    return adata, adata[~held_out].copy(), adata[held_out].copy()


def fitted(train: AnnData) -> si.model.Classifier:
    """A keyed classifier."""
    si.model.Classifier.setup_anndata(train, labels_key="bulk_labels", site_key="site")
    model = si.model.Classifier(train)
    model.train(20, key=KEY, progress=False)
    return model


def of_classifiers() -> Drawn:
    """Training and predictions."""
    _, train, test = blood()
    model = fitted(train)
    si.tl.annotate(test, model)
    sent = np.asarray(test.X[0]).ravel()[:200]
    seen = {"true": sent, "in the open": 2 * sent, "keyed sum": np.random.default_rng(0).normal(size=200)}
    return {
        "history": lambda: si.pl.history(model, sites=True),
        "sites": lambda: si.pl.sites(model),
        "confusion": lambda: si.pl.confusion(test, "bulk_labels"),
        "reconstruction": lambda: si.pl.reconstruction(pd.DataFrame(seen)),
    }


def of_explanations() -> Drawn:
    """What a classifier looks at, and what is left of it without the key."""
    _, train, test = blood()
    model = fitted(train)
    si.pp.federated_class_means(train, "bulk_labels", site_key="site", key=KEY)
    shown = ["CD14+ Monocyte", "CD19+ B", "Dendritic"]
    few = test[test.obs["bulk_labels"].isin(shown)].copy()
    few.uns["infl"] = train.uns["infl"]
    si.tl.explain(few, model, n_draws=2)
    ablated = si.tl.ablate(test, model)
    return {
        "explain": lambda: si.pl.explain(few, "CD19+ B"),
        "top_features": lambda: si.pl.top_features(few, shown),
        "ablation": lambda: si.pl.ablation(ablated),
    }


def of_comparisons() -> Drawn:
    """Methods on the same splits."""
    table = si.tl.compare(
        blood()[0],
        "bulk_labels",
        site_key="site",
        methods=["local-only", "centralised", "FedAvg", "coordinate + keyed sums", "SampleDP, epsilon 8"],
        n_seeds=2,
        thief_samples=(),
        n_keys=5,
        delta=1e-3,
        train={"n_rounds": 15},
        progress=False,
    )
    shown = ["centralised", "FedAvg", "coordinate + keyed sums"]
    return {
        "compare": lambda: si.pl.compare(table, ["balanced_accuracy", "f1"]),
        "tradeoff": lambda: si.pl.tradeoff(table, privacy="membership advantage"),
        "radar": lambda: si.pl.radar(table, methods=shown),
    }


def of_audits() -> Drawn:
    """A quick audit of a small model."""
    adata, _, _ = blood()
    si.model.Classifier.setup_anndata(adata, labels_key="bulk_labels", site_key="site")
    model = si.model.Classifier(adata, n_hidden=32)
    model.train(15, key=KEY, progress=False)
    si.tl.audit(adata, model, key=KEY, quick=True, progress=False)
    table = adata.uns["infl"]["audit"]["table"]
    return {"audit": lambda: si.pl.audit(table, "membership")}


def of_perturbations() -> Drawn:
    """A generated screen of three sites."""
    screen = si.datasets.perturbseq_simulated(300, n_singles=40, n_doubles=60, n_cells=60, n_controls=600, rng=0)
    si.pp.perturbations(screen)
    si.pp.split_sites(screen, n_sites=3, by="infl_perturbation", alpha=0.5, everywhere=["ctrl"], rng=0)
    si.pp.split_perturbations(screen, "simulation", site_key="site")
    si.model.GEARS.setup_anndata(screen, site_key="site")
    model = si.model.GEARS(screen, gene_ontology=screen.uns["gene_terms"], n_hidden=32)
    model.train(15, loss="squared", key=KEY, min_cells=1, progress=False)
    scores = si.tl.score_perturbations(screen, {"keyed GEARS": model})
    pairs = list(screen.uns["infl"]["split"]["test"]["combo_seen2"])[:8]
    predicted = model.predict(pairs[:1]).to_df(layer="delta").iloc[0]
    changes = si.metrics.mean_changes(screen.X, screen.obs["infl_perturbation"].astype(str), screen.var_names)
    genes = pd.DataFrame({"predicted": predicted, "measured": changes.loc[pairs[0]]})
    some = scores[scores["method"].isin(["no change", "train mean", "additive", "keyed GEARS"])]
    hits = some[some["perturbation"].isin(pairs) & (some["method"] != "no change")]
    return {
        "perturbation": lambda: si.pl.perturbation(screen, {"keyed GEARS": model}, pairs[0], n_genes=12),
        "perturbation_scatter": lambda: si.pl.perturbation_scatter(genes, title=pairs[0]),
        "perturbation_metrics": lambda: si.pl.perturbation_metrics(some),
        "hit_rate": lambda: si.pl.hit_rate(hits),
        "interactions": lambda: si.pl.interactions(model.predict_interaction(pairs)),
    }


def of_sections() -> Drawn:
    """Generated sections with RNA, proteins or both."""
    mdata = si.datasets.mosaic_simulated(n_spots=600)
    truth = si.datasets.mosaic_simulated(n_spots=600, complete=True)["adt"]
    si.pp.clr(truth)
    tables, aligned = [], []
    for seed in range(2):
        si.model.SpaMosaic.setup_mudata(mdata, "section", site_key="site")
        model = si.model.SpaMosaic(mdata, rng=seed)
        model.train(20, key=KEY, rng=seed, progress=False)
        si.tl.embed(mdata, model)
        si.tl.cluster(mdata, 6, rng=seed)
        scored = {"batch": mdata.obs["section"], "labels": mdata.obs["domain"], "clusters": mdata.obs["infl_domain"]}
        table = si.metrics.integration(mdata.obsm["X_infl"], coordinates=mdata.obsm["spatial"], **scored)
        tables.append(table.assign(method="keyed SpaMosaic", seed=seed))
        both = (mdata.obs["section"] == "section_1").to_numpy()
        codes = [model.get_latent_representation(modality=modality)[both] for modality in ("rna", "adt")]
        met = si.metrics.modality_alignment(*codes, labels=mdata.obs["domain"][both])
        aligned.append(met.assign(modalities="rna, adt"))
    si.tl.match_domains(mdata, "domain")
    imputed = si.tl.impute(mdata, model, modality="adt")
    wanted = truth[imputed.obs_names]
    protein = si.metrics.imputation_features(wanted.X, imputed.X, features=truth.var_names)["pcc"].idxmax()
    shown = ["ari", "nmi", "label_transfer", "mixing", "pas"]
    return {
        "sections": lambda: si.pl.sections(mdata, section_key="section"),
        "integration_metrics": lambda: si.pl.integration_metrics(pd.concat(tables), shown),
        "modality_alignment": lambda: si.pl.modality_alignment(pd.concat(aligned)),
        "imputation": lambda: si.pl.imputation(imputed, protein, measured=truth),
        "imputation_scatter": lambda: si.pl.imputation_scatter(imputed, protein, measured=truth),
    }


def main(groups: list[str]) -> None:
    """Write one file for each function; names of groups choose some."""
    warnings.simplefilter("ignore")
    FOLDER.mkdir(exist_ok=True)
    makers = {
        "classifiers": of_classifiers,
        "explanations": of_explanations,
        "comparisons": of_comparisons,
        "audits": of_audits,
        "perturbations": of_perturbations,
        "sections": of_sections,
    }
    for group in groups or makers:
        for name, draw in makers[group]().items():
            draw().figure.savefig(FOLDER / f"{name}.png", dpi=160, bbox_inches="tight")
            plt.close("all")


if __name__ == "__main__":
    main(sys.argv[1:])
