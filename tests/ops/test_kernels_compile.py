"""Every kernel compiles for the GPUs that we serve and fits their shared memory; a T4 meets no tensor-core
dot.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = {
    "scan_forward",
    "scan_backward",
    "scan_backward_summary",
    "readout_forward",
    "readout_backward",
    "conv_forward",
    "conv_backward",
    "sum_partials",
    "conv_step",
    "scan_step",
    "rounded_step",
    "adam_step",
    "tile_squares",
    "clip_scale",
    "moment",
    "tile_weighted",
    "limit_scale",
    "norm_forward",
    "norm_backward",
    "swiglu_forward",
    "swiglu_backward",
    "mix_forward",
    "mix_backward",
    "group_forward",
    "group_backward",
    "norm_conv_forward",
    "norm_conv_backward",
    "gather_rows",
    "add_rows",
    "norm_last_rows",
    "relu2_forward",
    "relu2_backward",
    "_softmax_gradient",
    "_row_scores",
    "_softmax_gradient_in_parts",
}
FROM_SM80 = {
    "product",
    "exponentials",
    "finish",
    "scale_rows",
    "key_numbers",
    "forward",
    "backward_queries",
    "backward_keys",
    "parameter_gradients",
    "collect",
    "walk",
    "read",
    "collect_gradients",
    "gradients",
    "features_forward",
    "features_backward",
    "turn",
    "find_first",
    "find_last",
}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.parametrize("capability", [75, 80, 89, 90])
def test_kernels_compile_without_a_gpu(capability):
    file = Path(__file__).parents[1] / "helpers" / "compiled_kernels.py"
    environment = {**os.environ, "PYTHONPATH": str(file.parents[2]), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, str(file), str(capability)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert {line.split()[0] for line in done.stdout.splitlines()} == KERNELS | (
        FROM_SM80 if capability >= 80 else set()
    )
