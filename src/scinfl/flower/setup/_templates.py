"""Files that a new federation starts from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from scinfl import __version__


def job_template(sites: Sequence[str]) -> str:
    """Job to edit, and to send to every site."""
    names = ", ".join(f'"{site}"' for site in sites)
    return f"""# What the federation trains. Every site reads this file and agrees to it:
# after a change, send it to all of them.

[federation]
sites = [{names}]
min_sites = {min(3, len(sites))}    # least number of sites in a sum; a sum of few shows them to each other
deadline = 600   # seconds to wait for slow sites once min_sites have answered
# sum = "pairwise"            # hides what a site sends also from a site that colludes with the server
# features = "intersection"   # or "union": the sites bring themselves to the same features; else they must be the same

[model]
class = "Classifier"   # or "GEARS", "SpaMosaic", "scvi.SCVI"; below it the hyper-parameters of that class
n_hidden = 256

[setup]
labels_key = "label"   # column of obs

[train]
n_rounds = 50
local_epochs = 2
lr = 0.006
validation_size = 0.1

[strategy]
class = "FedAvg"

# Noise at each site, before anything is sent:
# [[protections]]
# class = "SampleDP"
# target_epsilon = 8.0
# delta = 1e-4
"""


def app_template(config: Mapping[str, str | bool] | None = None) -> str:
    """Description of Flower's app of a federation, with the configuration of its runs; it carries no code."""
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in (config or {}).items()]
    return f"""[project]
name = "scinfl-federation"
version = "{__version__}"
description = "scinfl, as installed: this bundle carries no code"
license = "BSD-3-Clause"
dependencies = []

[tool.flwr.app]
publisher = "scinfl"

[tool.flwr.app.components]
serverapp = "scinfl.flower.apps:server_app"
clientapp = "scinfl.flower.apps:client_app"

[tool.flwr.app.config]
{chr(10).join(lines)}
"""


def site_template(site: str) -> str:
    """Settings of one site."""
    return f"""# How this site reads its own data. Lines that start with # repeat the job.
site = "{site}"
# labels_key = "cell_type"
# layer = "log1p"
# group_key = "donor"
# condition_key = "perturbation"      # for GEARS
# gene_ontology = "terms.tsv"         # for GEARS: a file beside this one, the same at all sites
# section_key = "slice"               # for SpaMosaic
# spatial_key = "spatial"
device = "cpu"
min_cells_per_label = 1   # refuse to take part where a label has fewer cells here
"""


def site_guide(site: str) -> str:
    """Instructions for one site."""
    return f"""# Site {site}

This folder is for site {site} alone. It holds private keys (`link.key`, `identity.json`).

1. Install scinfl with its extra for Flower: `pip install '.[flower]'` in a copy of its source.
2. Get the key of the federation from another site, over a channel that the operator does not see, or make it once for
   all sites: `scinfl key new consortium.key`. Compare `scinfl key show consortium.key` by telephone.
3. Compare the fingerprints of the identities by telephone: `scinfl federation show .`
4. Read `job.toml`: that is what will be trained.
5. See what would leave, without any network: `scinfl federation site . --data my.h5ad --key consortium.key --dry-run`
6. Take part: `scinfl federation site . --data my.h5ad --key consortium.key`

The command waits for the server, survives its restarts, and writes the model to `model/` at the end.
"""


def operator_guide(sites: Sequence[str]) -> str:
    """Instructions for the operator."""
    folders = ", ".join(f"`site_{site}/`" for site in sites)
    return f"""# A federation of {len(sites)} sites

1. Edit `server/job.toml`, and copy it into every site folder.
2. Send {folders} to the sites, each over a channel that others do not read: they hold private keys. Delete your copies.
3. Keep `authority/` away from the server: with `ca.key` anybody can pass for the server.
4. Start the server: `scinfl federation server server --job server/job.toml`
5. After a crash: the same with `--resume`.
6. A site that must not come back: `scinfl federation revoke server SITE`, and let the sites change the key
   (`scinfl key revoke`).

You never need the key of the federation. Do not accept it.
"""
