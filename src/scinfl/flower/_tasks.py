"""What a site brings, by kind of model."""

from __future__ import annotations

from scinfl.flower._classifier_task import ClassifierTask
from scinfl.flower._perturbation_task import PerturbationTask
from scinfl.flower._spatial_task import SpatialTask
from scinfl.flower._task import Task

TASKS: dict[str, type[Task]] = {task.kind: task for task in (ClassifierTask, PerturbationTask, SpatialTask)}
