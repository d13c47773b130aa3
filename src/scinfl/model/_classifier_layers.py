"""How many hidden layers a Classifier has, where validation rows are to decide."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from scinfl.federation.rounds import SpendsPrivacy
from scinfl.model._classifier_options import ClassifierOptions
from scinfl.model.base._model import FederatedModel

logger = logging.getLogger(__name__)
Model = TypeVar("Model", bound=FederatedModel)

_METRIC = "validation_accuracy"


def check_choice(options: ClassifierOptions) -> bool:
    """Whether models are to be compared: not where each of them would spend a privacy budget.

    Raises
    ------
    ValueError
        If no rows are set aside to compare them on.
    """
    if not options.validation_size:
        msg = (
            "Expected validation rows to choose the number of hidden layers on, found `validation_size=0`. Raise it, "
            "or make the model with a number of layers."
        )
        raise ValueError(msg)
    guards = () if options.protections == "default" else options.protections
    if any(isinstance(guard, SpendsPrivacy) for guard in guards):
        logger.warning("Took 2 hidden layers: to compare others on the same rows would spend the budget twice.")
        return False
    return True


def train_each(
    models: Sequence[Model], train: Callable[[Model, ClassifierOptions], None], options: ClassifierOptions
) -> Model | None:
    """Train models, from the simplest on, and return that of the highest validation accuracy; ``None`` in a dry run.

    The simplest of those with the highest is kept: few rows often do not separate models, and then a simple one does
    better on others.
    """
    scores = []
    for model in models:
        own = options
        if options.journal is not None:
            own = replace(
                options, journal=Path(options.journal) / f"{model.init_params_['non_kwargs']['n_layers']}_layers"
            )
        train(model, own)
        table = model.history
        if table is not None:
            scores.append(float(table[_METRIC].get(table.attrs["best_round"], 0.0)) if _METRIC in table else 0.0)
    if not scores:
        return None
    best = max(range(len(models)), key=lambda number: scores[number])  # the first of several
    found = " and ".join(f"{score:.3f}" for score in scores)
    logger.info("Kept %s; validation accuracies are %s.", models[best], found)
    return models[best]
