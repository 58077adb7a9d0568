"""How fast a device computes, as far as it was measured."""

from __future__ import annotations

import math

from newllm_lib.device import Device
from newllm_lib.recipe import Recipe

# Matrix arithmetic a training run of these small models really gets, in TFLOP/s: measured for the CPU (per
# core) and the H100, for the others scaled from their data sheets by the H100's share.
TFLOPS = {"cpu": 0.03, "t4": 2.5, "v100": 5.0, "l4": 6.0, "a100": 18.0, "h100": 36.0, "other": 5.0}
# A large model keeps a GPU busier: an H100 gave 205 TFLOP/s at 1.42 billion parameters, 36 at 4 million.
# Between, by logarithm.
_SMALL, _LARGE, _LARGE_GAIN = 4.2e6, 1.42e9, 205 / 36
GPU_START_HOURS = 20 / 3600  # kernels compiled at the first step


def gain(parameters: int) -> float:
    """How much busier than the smallest a model of so many parameters keeps a GPU."""
    share = math.log(max(1.0, parameters / _SMALL)) / math.log(_LARGE / _SMALL)
    return _LARGE_GAIN ** min(1.0, share)


def dtype_in(recipe: Recipe, device: Device) -> str:
    """The dtype of matrix products."""
    return device.dtype if recipe.dtype == "auto" else recipe.dtype
