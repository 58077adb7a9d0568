"""The curvature schedule: space starts nearly flat, with ordinary distances, and bends while training.

A factor on the learned curvatures rises to 1 over the first half of training; what is learned is never
overwritten. The model keeps the factor with its weights (`curvature_factor`), so a checkpoint from any moment
is evaluated and continued as it was trained.
"""

from __future__ import annotations

import math

from torch import nn

from newllm_lib.recipe import Recipe

START = 0.1  # the factor at the first step


def curvature_factor(step: int, total: int, recipe: Recipe) -> float:
    """The factor on the learned curvatures at `step` of `total`."""
    if recipe.curvature_schedule == "off":
        return 1.0
    done = min(1.0, 2 * step / total) if total else 1.0
    risen = done if recipe.curvature_schedule == "linear" else 0.5 * (1 - math.cos(math.pi * done))
    return START + (1 - START) * risen


def has_curvature_schedule(recipe: Recipe) -> bool:
    """Whether training moves the factor: not where the start has bent its space already."""
    scheduled = recipe.model == "phase7" and recipe.attention != "dot" and recipe.curvature_schedule != "off"
    return scheduled and recipe.from_run is None


class CurvatureSchedule:
    """Sets the model's factor before each step, in place: compiled steps and CUDA graphs read it too."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe

    def set(self, model: nn.Module, step: int, total: int) -> None:
        model.base_model.curvature_factor.fill_(curvature_factor(step, total, self.recipe))
