"""The other side of `gears.py`: cell-gears' own network, loss and settings on prepared arrays.

Runs in an environment of its own that has cell-gears; `gears.py` calls it. Nothing of scinfl is imported here.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from gears.model import GEARS_Model
from gears.utils import loss_fct
from torch_geometric.data import Batch, Data

SETTINGS = {
    "hidden_size": 64,
    "num_go_gnn_layers": 1,
    "num_gene_gnn_layers": 1,
    "decoder_hidden_size": 16,
    "num_similar_genes_go_graph": 20,
    "num_similar_genes_co_express_graph": 20,
    "coexpress_threshold": 0.4,
    "uncertainty": False,
    "uncertainty_reg": 1,
    "direction_lambda": 1e-1,
    "no_perturb": False,
    "device": "cpu",
}


def clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def reference(path: str, n_genes: int, n_perts: int, d: int) -> None:
    """Write random networks of cell-gears and what they predict: in evaluation, and in training by the batch."""
    members = [(0,), (1, 2), (), (0, 3), (0,), (4,), (1, 2)]
    arrays = {}
    for name, uncertainty, n_layers in (("plain", False, 1), ("deep", True, 2)):
        torch.manual_seed(0)
        graphs = {}
        for graph, n in (("G_go", n_perts), ("G_coexpress", n_genes)):
            edges = torch.unique(torch.randint(0, n, (2, 3 * n)), dim=1)
            edges = edges[:, edges[0] != edges[1]]
            loops = torch.arange(0, n, 2)  # some vertices have a loop of their own, some do not
            graphs[graph] = torch.cat([edges, torch.stack([loops, loops])], 1)
            graphs[f"{graph}_weight"] = torch.rand(graphs[graph].shape[1]) * 0.6 + 0.4
        sizes = {"num_genes": n_genes, "num_perts": n_perts, "hidden_size": d, "uncertainty": uncertainty}
        layers = {"num_go_gnn_layers": n_layers, "num_gene_gnn_layers": n_layers}
        network = GEARS_Model({**SETTINGS, **graphs, **sizes, **layers})
        for kind, values in (*network.named_buffers(), *network.named_parameters()):
            if kind.endswith("running_mean"):
                values.normal_(0, 0.3)
            elif kind.endswith("running_var"):
                values.uniform_(0.5, 1.5)
            elif kind.endswith("bias"):
                values.data.add_(torch.randn_like(values) * 0.2)
        arrays |= {f"{name}/state/{key}": value.numpy().copy() for key, value in network.state_dict().items()}
        arrays |= {f"{name}/state/{key}": value.numpy() for key, value in graphs.items()}
        cells = [Data(x=torch.rand(n_genes, 1), pert_idx=list(m) or [-1], pert="", y=torch.zeros(1)) for m in members]
        batch = Batch.from_data_list(cells)
        base = batch.x.view(len(cells), -1)
        with torch.no_grad():
            network.eval()
            predicted = network(batch)
            if uncertainty:
                predicted, spread = predicted
                arrays[f"{name}/logvar"] = spread.numpy()
            arrays[f"{name}/eval"] = (predicted - base).numpy()
            network.train()
            predicted = network(batch)
            arrays[f"{name}/train"] = ((predicted[0] if uncertainty else predicted) - base).numpy()
    np.savez_compressed(path, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("arrays")
    parser.add_argument("--reference", type=int, nargs=3, metavar=("GENES", "PERTURBATIONS", "HIDDEN"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, help="measure so many steps and stop")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.reference:
        reference(options.arrays, *options.reference)
        print("{}")
        return
    with np.load(options.arrays, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    started = clock()
    study = Study(arrays, options.seed)
    prepared = clock()
    if options.steps:
        print(json.dumps(study.time_steps(options.steps)))
        return
    rounds = study.train(options.epochs)
    print(json.dumps({"preparation": prepared[1] - started[1], "rounds": rounds}))


class Study:
    """Cells, network and optimiser."""

    def __init__(self, arrays: dict[str, np.ndarray], seed: int) -> None:
        self.x = torch.from_numpy(arrays["x"])  # cells × genes
        self.codes = arrays["codes"]  # condition of each cell
        self.names = [str(name) for name in arrays["names"]]
        self.members = [[int(i) for i in row if i >= 0] for row in arrays["members"]]
        self.part = arrays["part"]  # of each condition: 0 train, 1 validation, 2 test
        self.top = arrays["top"]
        control = np.flatnonzero(self.codes == self.names.index("ctrl"))
        self.control = self.x[control].mean(0)
        generator = np.random.default_rng(seed)
        self.base = generator.choice(control, len(self.codes))
        self.base[control] = control  # controls are their own targets
        self.rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        graphs = {
            name: torch.from_numpy(arrays[name])
            for name in ("G_go", "G_go_weight", "G_coexpress", "G_coexpress_weight")
        }
        n_genes = self.x.shape[1]
        self.network = GEARS_Model({**SETTINGS, **graphs, "num_genes": n_genes, "num_perts": int(arrays["n_perts"])})
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3, weight_decay=5e-4)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=1, gamma=0.5)
        self.non_zero = {
            name: np.flatnonzero(self.x[self.codes == code].mean(0).numpy() != 0)
            if name != "ctrl"
            else np.arange(n_genes)
            for code, name in enumerate(self.names)
        }

    def batch(self, cells: np.ndarray, base: np.ndarray) -> Batch:
        return Batch.from_data_list(
            [
                Data(
                    x=self.x[b][:, None],
                    y=self.x[c][None],
                    pert_idx=self.members[self.codes[c]] or [-1],
                    pert=self.names[self.codes[c]],
                )
                for c, b in zip(cells, base, strict=True)
            ]
        )

    def step(self, cells: np.ndarray) -> None:
        batch = self.batch(cells, self.base[cells])
        self.optimizer.zero_grad()
        loss = loss_fct(
            self.network(batch), batch.y, batch.pert, ctrl=self.control, dict_filter=self.non_zero,
            direction_lambda=SETTINGS["direction_lambda"],
        )  # fmt: skip
        loss.backward()
        torch.nn.utils.clip_grad_value_(self.network.parameters(), clip_value=1.0)
        self.optimizer.step()

    def train_cells(self) -> np.ndarray:
        cells = np.flatnonzero(self.part[self.codes] == 0)
        return self.rng.permutation(cells)[: len(cells) // 32 * 32]

    def time_steps(self, n: int) -> dict[str, float]:
        self.network.train()
        batches = self.train_cells().reshape(-1, 32)
        self.step(batches[0])  # warm
        wall, cpu = clock()
        for cells in batches[1 : n + 1]:
            self.step(cells)
        end = clock()
        return {"wall": (end[0] - wall) / n, "cpu": (end[1] - cpu) / n, "steps_a_pass": len(batches)}

    def train(self, n_epochs: int) -> list[dict[str, float]]:
        rounds, wall, cpu = [], 0.0, 0.0
        for _ in range(n_epochs):
            start = clock()
            self.network.train()
            for cells in self.train_cells().reshape(-1, 32):
                self.step(cells)
            self.schedule.step()
            validation = self.error(1)  # of cells, as the original does, to choose the epoch
            end = clock()
            wall, cpu = wall + end[0] - start[0], cpu + end[1] - start[1]
            rounds.append({"wall": wall, "cpu": cpu, "validation": validation, "test": self.error(2)})
        return rounds

    @torch.no_grad()
    def error(self, part: int) -> float:
        """Mean squared error of the mean change of the 20 most differential genes, over the conditions of a part."""
        self.network.eval()
        errors = []
        for code in np.flatnonzero(self.part == part):
            cells = np.flatnonzero(self.codes == code)
            base = self.rng.choice(np.flatnonzero(self.codes == self.names.index("ctrl")), len(cells))
            batch = self.batch(cells, base)
            change = (self.network(batch) - batch.x.view(len(cells), -1)).mean(0)
            measured = self.x[cells].mean(0) - self.control
            errors.append(float((change - measured)[self.top[code]].square().mean()))
        return float(np.mean(errors))


if __name__ == "__main__":
    main()
