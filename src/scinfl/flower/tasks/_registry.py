"""What a site contributes, by kind of model."""

from __future__ import annotations

from scinfl._names import OF_SCVI
from scinfl.flower.tasks._classifier import ClassifierTask
from scinfl.flower.tasks._counts import ScviTask
from scinfl.flower.tasks._gears import PerturbationTask
from scinfl.flower.tasks._spamosaic import SpatialTask
from scinfl.flower.tasks._task import Task

_TASKS: dict[str, type[Task]] = {task.kind: task for task in (ClassifierTask, PerturbationTask, SpatialTask)}


def task_of(model: str) -> type[Task]:
    """Task for the class of a job."""
    return ScviTask if model.startswith(OF_SCVI) else _TASKS[model]
