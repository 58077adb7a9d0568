"""The probe answers as the named device would, with a reason for each choice."""

import platform
import subprocess
import sys

import pytest

from newllm_lib.device import _kind_of, probe
from newllm_lib.errors import UsageError


@pytest.mark.parametrize(
    ("kind", "dtype", "dot"),
    [
        ("t4", "fp16", False),
        ("v100", "fp16", False),
        ("l4", "bf16", True),
        ("a100", "bf16", True),
        ("h100", "bf16", True),
        ("cpu", "fp32", False),
    ],
)
def test_dtype_and_kernels_follow_the_capability(monkeypatch, kind, dtype, dot):
    monkeypatch.setenv("NEWLLM_DEVICE", kind)
    device = probe()
    assert (device.kind, device.dtype, device.tensor_core_dot) == (kind, dtype, dot)
    assert {"device", "dtype", "attention", "kernels", "compile"} <= set(device.reasons)


def test_an_unknown_device_is_named_with_the_known_ones(monkeypatch):
    monkeypatch.setenv("NEWLLM_DEVICE", "k80")
    with pytest.raises(UsageError, match="k80.*t4"):
        probe()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Tesla T4", "t4"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h100"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("NVIDIA L40S", "other"),
        ("NVIDIA GeForce RTX 3080", "other"),
    ],
)
def test_gpus_are_recognised_by_the_drivers_name(name, kind):
    assert _kind_of(name) == kind


def test_a_package_that_was_replaced_under_a_running_process_is_named(monkeypatch):
    import transformers

    from newllm_lib.device import stale_packages

    assert stale_packages() == []
    installed = transformers.__version__
    monkeypatch.setattr(transformers, "__version__", "5.0.0")
    (line,) = stale_packages()
    assert (
        line.startswith(f"transformers 5.0.0 is loaded, but {installed} is installed: restart")
        and "\n" not in line
    )


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of other C libraries nothing is asked")
def test_freed_memory_is_kept():
    code = """
import resource
import numpy
from newllm_lib.device import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(2):
        arrays = [numpy.ones(1 << 20) for _ in range(16)]
        del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
before = faults()
keep_freed_memory()
faults()
print(before, faults())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 10 * after
