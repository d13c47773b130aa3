"""Parameters of a network that cell-gears trained, under the names of scinfl."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_EXPORT = """\
import json
from safetensors.torch import save_file
graphs = {name: gears_model.config[name].contiguous() for name in
          ("G_go", "G_go_weight", "G_coexpress", "G_coexpress_weight")}
names = {"genes": gears_model.gene_list, "perturbations": gears_model.pert_list}
save_file({**gears_model.best_model.state_dict(), **graphs}, "gears.safetensors",
          {name: json.dumps(list(map(str, values))) for name, values in names.items()})"""
_MLPS = {
    "emb_trans_v2": "gene_mlp",
    "pert_fuse": "perturbation_mlp",
    "recovery_w": "pair_mlp",
    "cross_gene_state": "cross_gene_mlp",
    "uncertainty_w": "uncertainty_mlp",
}
_PARTS = {
    "gene_emb": "gene_embedding",
    "emb_pos": "gene_position",
    "pert_emb": "perturbation_embedding",
    "bn_emb": "gene_norm",
    "bn_pert_base": "base_norm",
}
_LAYERS = {"layers_emb_pos": "coexpression", "sim_layers": "ontology"}
_GRAPHS = {"coexpression": "G_coexpress", "ontology": "G_go"}
_UNUSED = ("pert_w", "bn_pert_base_trans", "pert_emb_lambda")


class CellGears(NamedTuple):
    """What a file of cell-gears' parameters holds."""

    genes: list[str]
    vocabulary: list[str]
    state: dict[str, Tensor]
    graphs: dict[str, tuple[Tensor, Tensor]]

    def sizes(self) -> dict[str, int]:
        """Arguments of a model of the same shape."""
        names = [name for name in self.state if name.endswith("weight")]
        return {
            "n_hidden": self.state["gene_embedding.weight"].shape[1],
            "n_ontology_layers": sum(name.startswith("ontology.") for name in names),
            "n_coexpression_layers": sum(name.startswith("coexpression.") for name in names),
        }

    def facts(self) -> dict[str, Any]:
        """What the model knows of itself; its running statistics are those of the file."""
        return {
            "genes": self.genes,
            "vocabulary": self.vocabulary,
            "covariates": {},
            "agreed": None,
            "loss": "quartic",
            "statistics_stored": True,
        }


def read_cell_gears(path: str | os.PathLike[str]) -> CellGears:
    """Read the safetensors file that the lines of the error message write."""
    path = Path(path)
    if path.is_dir() or path.suffix in {".pt", ".pkl"}:
        msg = (
            f"Expected a safetensors file, found '{path}', which holds pickles: they can run code when they are "
            f"loaded, so scinfl never reads them. Where cell-gears is installed, run\n\n{_EXPORT}\n\nand pass that "
            "file."
        )
        raise ValueError(msg)
    if not path.is_file():
        msg = f"Expected a safetensors file at '{path}', found none. Write it with\n\n{_EXPORT}"
        raise FileNotFoundError(msg)
    try:
        with safe_open(path, "pt") as file:
            names = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        genes, vocabulary = (json.loads(names[name]) for name in ("genes", "perturbations"))
        graphs = {name: (tensors.pop(old), tensors.pop(f"{old}_weight")) for name, old in _GRAPHS.items()}
        return CellGears(genes, vocabulary, translated(tensors), graphs)
    except (SafetensorError, KeyError, ValueError) as error:
        msg = f"Expected parameters of cell-gears in '{path}', found another file ({error}). Write it with\n\n{_EXPORT}"
        raise ValueError(msg) from error


def translated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of cell-gears' network as a state of :class:`scinfl.module.GEARSModule`; unused parameters are dropped."""
    result = {
        "readout.weight": torch.cat([state["indv_w1"][..., 0], state["indv_b1"]], 1),
        "cross_readout.weight": torch.cat([state["indv_w2"][0], state["indv_b2"].T], 1),
    }
    for name, tensor in state.items():
        part, *rest = name.split(".")
        if part in _MLPS:
            place = int(rest[1])  # Linear, BatchNorm, ReLU, Linear, BatchNorm, …
            kind = "linears" if place % 3 == 0 else "norms"
            result[".".join([_MLPS[part], kind, str(place // 3), *rest[2:]])] = tensor
        elif part in _LAYERS:
            result[f"{_LAYERS[part]}.{rest[0]}.{rest[-1]}"] = tensor
        elif part in _PARTS:
            result[".".join([_PARTS[part], *rest])] = tensor
        elif not part.startswith("indv_") and part not in _UNUSED:
            raise KeyError(name)
    return result
