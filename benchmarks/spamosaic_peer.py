"""The other side of `spamosaic.py`: the published package, spamosaic 1.0.3, with its own functions.

Runs in an environment of its own; nothing of scinfl is imported here.

    python3.11 -m venv PEER
    PEER/bin/pip install torch==2.13.0
    PEER/bin/pip install --no-deps spamosaic==1.0.3
    PEER/bin/pip install wheel ninja psutil anndata scanpy "pandas<3" annoy hnswlib PyYAML seaborn scikit-misc
    PEER/bin/pip install torch-geometric harmony-pytorch
    MAX_JOBS=1 PEER/bin/pip install --no-build-isolation torch-scatter   # compiles for some minutes

    PEER/bin/python -P benchmarks/spamosaic_peer.py reference tests/module/spamosaic_reference.npz
    PEER/bin/python -P benchmarks/spamosaic_peer.py mosaic [--seeds 5] [--data FOLDER]
    PEER/bin/python -P benchmarks/spamosaic_peer.py contrast [--spots 8000] [--modalities 2]
    PEER/bin/python -P benchmarks/spamosaic_peer.py horizontal ARRAYS

`reference` writes what its network and losses compute on small random sections, for the tests. `mosaic` runs it on the
authors' simulated mosaic with their settings. `contrast` prints the peak memory of its contrastive loss. `horizontal`
is called by `spamosaic.py`: sections of one modality, timed. `-P` keeps `import spamosaic` from finding that script.

The package asks for a GPU in Harmony whatever it is told; the call is sent to the CPU from here.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import resource
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

warnings.simplefilter("ignore")
from spamosaic import MNN, preprocessing, train_utils  # noqa: E402
from spamosaic.architectures.wlgcn import WLGCN  # noqa: E402
from spamosaic.framework import SpaMosaic  # noqa: E402
from spamosaic.loss import CL_loss  # noqa: E402

SHARED = Path(os.environ.get("SCINFL_SHARED", Path(__file__).parents[2] / "shared"))
_harmonize = preprocessing.harmonize


def on_the_cpu(*args, **kwargs):
    return _harmonize(*args, **{**kwargs, "use_gpu": False, "verbose": False})


preprocessing.harmonize = on_the_cpu


def quiet(function):
    """Without what it prints."""

    @functools.wraps(function)
    def inner(*args, **kwargs):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return function(*args, **kwargs)

    return inner


@quiet
def new_model(sections, seed=1234, **options):
    return SpaMosaic(sections, input_key="dimred_bc", batch_key="src", seed=seed, device="cpu", **options)


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def clock() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


# ---- reference for the tests


def reference(path: str) -> None:
    """Random small mosaic of 3 sections of 20 spots: section 0 has both modalities, 1 the first, 2 the second."""
    MNN.nn_annoy = functools.partial(MNN.nn_annoy, n_trees=200)  # with its 10 trees a few neighbours are missed
    generator = np.random.default_rng(0)
    names = [[f"s{section}_{spot}" for spot in range(20)] for section in range(3)]
    coordinates = [generator.uniform(0, 10, (20, 2)) for _ in range(3)]

    def section(number, n_features):
        x = generator.normal(0.2, 1, (20, n_features)).astype(np.float32)
        obs = pd.DataFrame({"src": f"s{number}"}, index=names[number])
        obsm = {"spatial": coordinates[number], "dimred_bc": x}
        return ad.AnnData(np.zeros((20, 2), np.float32), obs, obsm=obsm)

    sections = {"rna": [section(0, 6), section(1, 6), None], "adt": [section(0, 5), None, section(2, 5)]}
    model = new_model(sections, intra_knns=4, inter_knn_base=3, w_g=0.8)
    torch.manual_seed(0)
    arrays, networks = {}, {}
    for name, (first, second) in {"rna": (0, 1), "adt": (0, 2)}.items():
        graphs = {kind: model.mod_graphs[kind][name] for kind in ("attribute", "edge", "edgeW", "edgeC")}
        place = {spot: number for number, spot in enumerate(names[first] + names[second])}
        pairs = sorted((place[i], place[j]) for i, j in model.mod_mnn_set[name])
        arrays |= {
            f"{name}/x": graphs["attribute"],
            f"{name}/coordinates": np.vstack([coordinates[first], coordinates[second]]),
            f"{name}/section": np.repeat([first, second], 20),
            f"{name}/mutual_neighbours": np.array(pairs),
            f"{name}/edge_index": graphs["edge"],
            f"{name}/edge_weight": graphs["edgeW"],
            f"{name}/edge_section": graphs["edgeC"],
        }
        networks[name] = random_network(graphs["attribute"].shape[1])
        arrays |= {f"{name}/state/{key}": value.clone() for key, value in networks[name].state_dict().items()}
        arrays |= outputs(networks[name], graphs, name)
    arrays |= contrasts(generator) | graph_loss(arrays) | first_epochs(model, networks)
    plain = {name: value.detach().numpy() if torch.is_tensor(value) else value for name, value in arrays.items()}
    np.savez_compressed(path, **plain)
    print(f"{len(plain)} arrays, {Path(path).stat().st_size} bytes")


def random_network(n_features: int) -> WLGCN:
    """With statistics and shifts of normalisation that are not those of a new network."""
    network = WLGCN(n_features, 8, K=2, dec_l=1, hidden_size=16, dropout=0.2, slope=0.2)
    with torch.no_grad():
        for name, value in (*network.named_buffers(), *network.named_parameters()):
            if name.endswith("running_mean"):
                value.normal_(0, 0.3)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif name in ("bn.weight", "bn.bias"):
                value.add_(torch.randn_like(value) * 0.2)
    return network


def outputs(network: WLGCN, graphs: dict, name: str) -> dict:
    """Propagated features, code, decoded features and embedding, in evaluation and in training without dropout."""
    seen, found = {}, {}
    hooks = [
        network.conv1.register_forward_hook(lambda _, __, value: seen.update(propagated=value)),
        network.fc2.register_forward_hook(lambda _, __, value: seen.update(code=value)),
    ]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    network.dropout1.p = 0.0
    with torch.no_grad():
        for mode in ("eval", "train"):
            z, decoded = network.train(mode == "train")(graphs["attribute"], graphs["edge"], graphs["edgeW"])
            found |= {f"{name}/{mode}/{key}": value for key, value in {**seen, "decoded": decoded, "z": z}.items()}
    del found[f"{name}/train/propagated"]
    found |= {f"{name}/train/{key}": network.state_dict()[key].clone() for key in ("bn.running_mean", "bn.running_var")}
    network.load_state_dict(state)
    for hook in hooks:
        hook.remove()
    return found


def contrasts(generator: np.random.Generator) -> dict:
    """Contrastive loss of spots in 2 and 3 modalities, one modality below the other, and its gradient."""
    found = {}
    for m in (2, 3):
        z = torch.from_numpy(generator.normal(size=(12 * m, 8)).astype(np.float32))
        z = torch.nn.functional.normalize(z).requires_grad_()
        loss = CL_loss(12, rep=m, bias=0)(z @ z.t() / 0.1)
        loss.backward()
        found |= {f"contrast_{m}/z": z, f"contrast_{m}/loss": loss, f"contrast_{m}/gradient": z.grad}
    return found


def graph_loss(arrays: dict) -> dict:
    """Cross-entropy of the edges of section 1 and as many negative ones, which are recorded."""
    drawn, sample = {}, train_utils.negative_sampling

    def record(*args, **kwargs):
        drawn["edges"] = sample(*args, **kwargs)
        return drawn["edges"]

    edges = arrays["rna/edge_index"][:, arrays["rna/edge_section"] == 1] - 20
    z = arrays["rna/eval/z"][20:].clone().requires_grad_()
    train_utils.negative_sampling = record
    loss = train_utils.graph_recon_crit(z, edges)
    train_utils.negative_sampling = sample
    loss.backward()
    return {
        "graph/z": z, "graph/edges": edges, "graph/negative_edges": drawn["edges"], "graph/loss": loss,
        "graph/gradient": z.grad,
    }  # fmt: skip


def first_epochs(model: SpaMosaic, networks: dict[str, WLGCN]) -> dict:
    """Its training from the stored weights for three epochs, without dropout: losses and embeddings."""
    model.prepare_net = lambda _: networks
    quiet(model.train)(net="wlgcn", lr=0.01, T=0.1, n_epochs=3)
    found = {"epochs/contrast": np.array(model.loss_cl), "epochs/reconstruction": np.array(model.loss_rec)}
    with torch.no_grad():
        for name, network in networks.items():
            graphs = (model.mod_graphs[kind][name] for kind in ("attribute", "edge", "edgeW"))
            found[f"epochs/{name}/z"] = network.eval()(*graphs)[0]
    return found


# ---- the authors' simulated mosaic


def read_mosaic(folder: Path) -> dict[str, list]:
    """Counts of section 1 in both modalities, section 2 in RNA, section 3 in proteins."""

    def read(number, modality):
        adata = ad.read_h5ad(folder / f"spamosaic_sim_r1_s{number}_adata_{modality}.h5ad")
        obs = pd.DataFrame({"gt": adata.obs["gt"].astype(str), "src": f"s{number}"})
        counts = np.asarray(adata.layers["counts"], np.float32)
        obsm = {"spatial": np.asarray(adata.obsm["spatial"])}
        return ad.AnnData(counts, obs, adata.var[[]], obsm=obsm, layers={"counts": counts.copy()})

    return {"rna": [read(1, "rna"), read(2, "rna"), None], "adt": [read(1, "adt"), None, read(3, "adt")]}


def fit_mosaic(sections: dict[str, list], seed: int) -> tuple[SpaMosaic, list]:
    """The published settings for this data; the model and an AnnData a section with the embedding."""
    options = {"batch_corr": True, "lognorm": False, "scale": True}
    quiet(preprocessing.RNA_preprocess)(sections["rna"], favor="scanpy", n_hvg=None, **options)
    quiet(preprocessing.ADT_preprocess)(sections["adt"], favor="scale", **options)
    model = new_model(sections, seed, intra_knns=10, inter_knn_base=10, w_g=0.8)
    quiet(model.train)(net="wlgcn", lr=0.01, T=0.1, n_epochs=100)
    return model, model.infer_emb(sections)


def mosaic(folder: Path, n_seeds: int) -> None:
    rows = []
    for seed in range(n_seeds):
        sections = read_mosaic(folder)
        start = clock()
        model, embedded = fit_mosaic(sections, seed)
        seconds = clock() - start
        z = np.vstack([section.obsm["merged_emb"] for section in embedded])
        truth = np.concatenate([section.obs["gt"] for section in embedded])
        found = KMeans(5, random_state=0).fit_predict(z)
        row = {"seed": seed, "ari": adjusted_rand_score(truth, found)}
        row |= {"nmi": normalized_mutual_info_score(truth, found), "wall": seconds[0], "cpu": seconds[1]}
        rows.append(row | expected_scores(model, sections))
    show(pd.DataFrame(rows), "simulated mosaic: domains, and imputation against the mean of the domain in section 1")
    rows = [row for seed in range(n_seeds) for row in held_out(read_mosaic(folder), seed)]
    show(pd.DataFrame(rows), "section 1 in thirds: bridge, RNA only, proteins only; sections 2 and 3 as they are")


def show(table: pd.DataFrame, title: str) -> None:
    print(f"{title}; mean ± standard error over seeds\n")
    groups = [name for name in ("what", "method") if name in table]
    numbers = [name for name in table if name not in (*groups, "seed")]

    def mean_and_error(values):
        return f"{values.mean():.3f} ± {values.sem():.3f}"

    shown = table.groupby(groups)[numbers].agg(mean_and_error) if groups else table[numbers].agg(mean_and_error)
    print(shown.to_string(), end="\n\n", flush=True)


def correlations(truth: np.ndarray, imputed: np.ndarray) -> dict[str, float]:
    """Mean Pearson correlation by spot and by feature, of log1p counts; constant columns have none."""

    def mean(x, y):
        x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
        norm = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        kept = norm > 1e-6 * len(x)
        return float(((x * y).sum(1)[kept] / norm[kept]).mean()) if kept.any() else np.nan

    x, y = np.log1p(truth), np.log1p(imputed)
    return {"pcc_spot": mean(x, y), "pcc_feature": mean(x.T, y.T)}


def expected_scores(model: SpaMosaic, sections: dict[str, list]) -> dict[str, float]:
    """Of what the files do not hold: section 2's proteins and section 3's RNA are known by domain only."""
    imputed = quiet(model.impute)(sections)
    found = {}
    for modality, number, other in (("adt", 1, "rna"), ("rna", 2, "adt")):
        bridge = sections[modality][0]
        mean = pd.DataFrame(bridge.layers["counts"]).groupby(bridge.obs["gt"].to_numpy()).mean()
        truth = mean.loc[sections[other][number].obs["gt"]].to_numpy()
        scores = correlations(truth, imputed[modality][number])
        found |= {f"{modality} {name}": value for name, value in scores.items()}
    return found


def held_out(sections: dict[str, list], seed: int) -> list[dict]:
    """Section 1 in random thirds, of which one bridges and two have one modality hidden; sections 2 and 3 stay."""
    third = np.random.default_rng(seed).permutation(np.arange(sections["rna"][0].n_obs) % 3)
    parts = {}
    for modality, (first, second, last) in sections.items():
        bridge, rna, adt = (first[third == number].copy() for number in range(3))
        bridge.obs["src"], rna.obs["src"], adt.obs["src"] = "s1", "s1_rna", "s1_adt"
        parts[modality] = [bridge, rna, adt, second, last]
    truth = {"protein of RNA spots": ("adt", 1, parts["adt"][1]), "RNA of protein spots": ("rna", 2, parts["rna"][2])}
    parts["adt"][1] = parts["rna"][2] = None
    imputed = quiet(fit_mosaic(parts, seed)[0].impute)(parts)
    rows = []
    for what, (modality, number, hidden) in truth.items():
        measured = parts[modality][0]
        counts = measured.layers["counts"]
        by_domain = pd.DataFrame(counts).groupby(measured.obs["gt"].to_numpy()).mean()
        space = np.linalg.norm(hidden.obsm["spatial"][:, None] - measured.obsm["spatial"][None], axis=2)
        guesses = {
            "spamosaic": imputed[modality][number],
            "mean of the bridge": np.tile(counts.mean(0), (hidden.n_obs, 1)),
            "10 nearest bridge spots in space": counts[np.argsort(space, 1)[:, :10]].mean(1),
            "true domain's mean": by_domain.loc[hidden.obs["gt"]].to_numpy(),
        }
        for method, guess in guesses.items():
            rows.append({"seed": seed, "what": what, "method": method, **correlations(hidden.layers["counts"], guess)})
    return rows


# ---- cost


def contrast(n_spots: int, m: int) -> None:
    """Peak memory of one evaluation of the contrastive loss and its gradient."""
    z = torch.nn.functional.normalize(torch.randn(m * n_spots, 32)).requires_grad_()
    before, start = peak_gigabytes(), clock()
    criterion = CL_loss(n_spots, rep=m)
    built = peak_gigabytes()
    loss = criterion(z @ z.t() / 0.1)
    loss.backward()
    seconds = clock() - start
    peak = peak_gigabytes()
    masks = 2 * (m * n_spots) ** 2 * 4 / 1e9
    found = {"before": before, "masks alone": masks, "peak with masks": built, "peak": peak}
    print(json.dumps({**found, "above before": peak - before, "wall": seconds[0], "cpu": seconds[1]}))


def horizontal(path: str, n_epochs: int) -> None:
    """Sections of one modality with its defaults: seconds of preprocessing, graphs and training, and peak memory."""
    torch.set_num_threads(1)
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    counts = sparse.csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), arrays["shape"])
    section = arrays["section"]
    sections = []
    for number in np.unique(section):
        own = np.flatnonzero(section == number)
        obs = pd.DataFrame({"src": f"s{number}"}, index=[f"s{number}_{spot}" for spot in range(len(own))])
        sections.append(ad.AnnData(counts[own].copy(), obs, obsm={"spatial": arrays["coordinates"][own]}))
    before, times = peak_gigabytes(), [clock()]
    quiet(preprocessing.RNA_preprocess)(sections, batch_corr=True)
    times.append(clock())
    model = new_model({"rna": sections})
    times.append(clock())
    quiet(model.train)(net="wlgcn", lr=0.01, n_epochs=n_epochs)
    times.append(clock())
    model.infer_emb({"rna": sections})
    times.append(clock())
    peak = peak_gigabytes()
    quiet(model.train)(net="wlgcn", lr=0.01, n_epochs=10, w_rec_g=0.2)
    times.append(clock())
    wall, cpu = np.diff(times, axis=0).T
    names = ["preprocessing", "graphs", "training", "embedding", "10 epochs with graph"]
    found = {"wall": dict(zip(names, wall, strict=True)), "cpu": dict(zip(names, cpu, strict=True))}
    print(json.dumps({**found, "epochs": n_epochs, "steps": n_epochs, "before": before, "peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("reference").add_argument("path")
    one = commands.add_parser("mosaic")
    one.add_argument("--seeds", type=int, default=5)
    one.add_argument("--data", type=Path, default=SHARED / "data" / "spatial")
    one = commands.add_parser("contrast")
    one.add_argument("--spots", type=int, default=8000)
    one.add_argument("--modalities", type=int, default=2)
    one = commands.add_parser("horizontal")
    one.add_argument("path")
    one.add_argument("--epochs", type=int, default=100)
    options = parser.parse_args()
    if options.command == "reference":
        reference(options.path)
    elif options.command == "mosaic":
        mosaic(options.data, options.seeds)
    elif options.command == "contrast":
        contrast(options.spots, options.modalities)
    else:
        horizontal(options.path, options.epochs)


if __name__ == "__main__":
    main()
