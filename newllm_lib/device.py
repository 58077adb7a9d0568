"""One probe decides dtype, attention, kernels and compilation for this machine, and says why.

Everything that depends on the hardware asks `probe()`; nothing else in the package tests for a GPU's
abilities. `NEWLLM_DEVICE=cpu|t4|v100|l4|a100|h100` makes it answer as that device would, so that the T4 path
(fp16, no tensor-core dot in Triton) can be tested on any GPU and a run for another machine can be planned on
this one.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, field
from pathlib import Path

from newllm_lib.errors import UsageError

# kind: (compute capability, GPU memory in GiB as CUDA reports it)
KNOWN_GPUS = {
    "t4": ((7, 5), 14.7),
    "v100": ((7, 0), 15.8),
    "l4": ((8, 9), 22.0),
    "a100": ((8, 0), 39.4),
    "h100": ((9, 0), 79.1),
}
CHECKED = (
    "torch",
    "numpy",
    "transformers",
    "datasets",
    "peft",
    "accelerate",
    "trl",
    "safetensors",
    "huggingface_hub",
    "pyarrow",
)
KINDS = ("cpu", *KNOWN_GPUS, "other")
_DEVICES, _DRIVER = Path("/dev"), Path("/proc/driver/nvidia")  # where Linux lists NVIDIA's GPUs
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as malloc.h has them
_WINDOWS_DRIVER = Path("/usr/lib/wsl/lib/libcuda.so.1")  # which WSL lends to Linux


@dataclass(frozen=True)
class Device:
    """What this machine is and what the package will use on it; `reasons` has a sentence for each choice."""

    kind: str  # cpu, t4, v100, l4, a100, h100 or other
    name: str
    torch_device: str  # "cpu" or "cuda"
    dtype: str  # "fp32", "fp16" or "bf16": the dtype of matrix products in training
    attention: str  # "sdpa" or "eager"
    kernels: str  # "triton" or "torch"
    tensor_core_dot: bool  # whether Triton's tl.dot may be used
    compile: bool
    memory_gib: float  # GPU memory, or host memory where there is no GPU
    cores: int
    capability: tuple[int, int] | None = None
    reasons: dict[str, str] = field(default_factory=dict)


def probe() -> Device:
    """Look at the machine once and choose.

    Raises:
        UsageError: `NEWLLM_DEVICE` names no known device.
    """
    wanted = os.environ.get("NEWLLM_DEVICE", "").lower()
    if wanted and wanted not in KINDS:
        raise UsageError(
            f"NEWLLM_DEVICE={wanted} is not known: use one of {', '.join(KINDS[:-1])}, or unset it."
        )
    import torch

    if wanted == "cpu" or (not wanted and not torch.cuda.is_available()):
        return _cpu(forced=bool(wanted))
    if wanted in KNOWN_GPUS:
        return known_gpu(wanted, f"{wanted.upper()} (by NEWLLM_DEVICE)")
    properties = torch.cuda.get_device_properties(0)
    capability = (properties.major, properties.minor)
    return _gpu(_kind_of(properties.name), properties.name, capability, properties.total_memory / 2**30)


def guess_kind() -> str:
    """The kind that `probe` would find, from what the system says in milliseconds, without torch; a GPU that
    does not tell its name is "other".
    """
    wanted = os.environ.get("NEWLLM_DEVICE", "").lower()
    if wanted in KINDS:
        return wanted
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    there = any(_DEVICES.glob("nvidia[0-9]*")) or _WINDOWS_DRIVER.exists()
    if hidden or not there or _torch_build() == "cpu":
        return "cpu"
    about = next(iter(sorted(_DRIVER.glob("gpus/*/information"))), None)
    return _kind_of(about.read_text(encoding="utf-8", errors="replace")) if about else "other"


def _torch_build() -> str:
    """What torch is made for, as in `cpu` or `cu128`; empty where its version does not say."""
    from importlib import metadata

    try:
        return metadata.version("torch").partition("+")[2]
    except metadata.PackageNotFoundError:
        return ""


def known_gpu(kind: str, name: str = "") -> Device:
    """What `probe` would answer on a GPU of `KNOWN_GPUS`, to plan for it elsewhere."""
    return _gpu(kind, name or kind.upper(), *KNOWN_GPUS[kind])


def _cpu(forced: bool) -> Device:
    reasons = {
        "device": "NEWLLM_DEVICE=cpu asks for it" if forced else "torch sees no CUDA GPU",
        "dtype": "fp32: processors compute half precision slowly or not at all",
        "attention": "sdpa: torch's fused attention, which also works without a GPU",
        "kernels": "torch: Triton's kernels need a GPU",
        "compile": "off: it needs a C++ compiler here and pays back only on long runs",
    }
    return Device(
        "cpu",
        "CPU",
        "cpu",
        "fp32",
        "sdpa",
        "torch",
        False,
        False,
        _host_memory_gib(),
        usable_cores(),
        None,
        reasons,
    )


def _gpu(kind: str, name: str, capability: tuple[int, int], memory_gib: float) -> Device:
    sm = f"sm{capability[0]}{capability[1]}"
    reasons = {"device": f"{name} ({sm}, {memory_gib:.1f} GiB)", "attention": "sdpa: torch's fused attention"}
    # torch.cuda.is_bf16_supported() counts emulation and says True on a T4, so the capability decides.
    ampere = capability >= (8, 0)
    dtype = "bf16" if ampere else "fp16"
    reasons["dtype"] = (
        f"bf16: {sm} has it in hardware" if ampere else f"fp16 with loss scaling: {sm} has no bf16"
    )
    triton = _has_triton() and capability >= (7, 0)
    reasons["kernels"] = (
        "triton" if triton else "torch: " + ("no triton package" if capability >= (7, 0) else "too old")
    )
    if triton and not ampere:
        reasons["kernels"] += f", without tensor-core dot: Triton has none below sm80 ({sm})"
    reasons["compile"] = (
        "on: torch.compile, where it finds something to fuse (other models' steps are recorded)"
        if triton
        else "off: it needs triton"
    )
    return Device(
        kind,
        name,
        "cuda",
        dtype,
        "sdpa",
        "triton" if triton else "torch",
        triton and ampere,
        triton,
        memory_gib,
        usable_cores(),
        capability,
        reasons,
    )


def stale_packages(names: tuple[str, ...] = CHECKED) -> list[str]:
    """A line for each package that this process has loaded in another version than is installed.

    That comes of installing into a running notebook: what was imported before stays, and the two do not fit
    together.
    """
    import sys
    from importlib import metadata

    lines = []
    for name in names:
        loaded = getattr(sys.modules.get(name), "__version__", None)
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if loaded and loaded.partition("+")[0] != installed.partition("+")[0]:
            lines.append(
                f"{name} {loaded} is loaded, but {installed} is installed: restart the session (Runtime → "
                "Restart session) and run the cells again."
            )
    return lines


def _kind_of(name: str) -> str:
    """The short kind of a GPU from the name its driver gives (an H200 is treated as an H100)."""
    upper = name.upper()
    for mark, kind in (
        ("H100", "h100"),
        ("H200", "h100"),
        ("A100", "a100"),
        ("V100", "v100"),
        ("L4", "l4"),
        ("T4", "t4"),
    ):
        if mark in upper.replace("-", " ").split():
            return kind
    return "other"


def _has_triton() -> bool:
    import importlib.util

    return importlib.util.find_spec("triton") is not None


def usable_cores() -> int:
    """CPU cores this process may run on (a container may have fewer than the host)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Let this process keep up to half a GiB that it has freed, for what it needs next.

    A training step on a CPU frees all it has made at its end. glibc gives that back to the system and gets it
    again page by page: thousands of page faults in each step. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_TRIM_THRESHOLD, 1 << 29)
    mallopt(_MMAP_THRESHOLD, 1 << 25)  # the most that it takes: larger blocks stay outside of its heap


def _host_memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
