"""What a federation is compared with: scvi-tools' own model and trainer on pooled cells."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from anndata import AnnData

from scinfl.model.scvi._classes import supported
from scinfl.model.scvi._model import ScviModel
from scinfl.model.scvi._template import quiet
from scinfl.model.scvi._view import ScviView


def train_pooled(
    model: ScviModel, cells: AnnData, n_epochs: int, *, lr: float = 1e-3, batch_size: int = 128, rng: int = 0
) -> Any:
    """Train the model of scvi-tools that a federation trains, by its own trainer on pooled cells.

    It has the same network, arguments and warm-up. What a federation cannot have is left out of it too: the network
    against which ``TOTALVI`` and ``MULTIVI`` are trained to mix batches, and stopping on pooled validation cells.

    Parameters
    ----------
    model
        Model of these sites, trained or not.
    cells
        Cells of all sites to train on.
    n_epochs
        Passes over the cells.
    lr, batch_size
        Of the optimiser; the other settings are those of scvi-tools.
    rng
        Seed of initial weights, batches and latent samples.

    Returns
    -------
    Trained model of scvi-tools.
    """
    plan = {"lr": lr, "n_epochs_kl_warmup": supported(model.class_name).n_epochs_kl_warmup}
    absent = {"early_stopping": False, "reduce_lr_on_plateau": False, "shuffle_set_split": False}
    absent |= {"adversarial_mixing": False, "adversarial_classifier": False}
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(rng)
        native = ScviView(model).native(cells)
        known = signature(native.train).parameters
        native.train(
            n_epochs,
            train_size=1.0,
            batch_size=batch_size,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plan_kwargs={name: value for name, value in plan.items() if name not in known},
            **{name: value for name, value in {**plan, **absent}.items() if name in known},
        )
    return native
