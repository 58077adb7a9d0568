"""Training with less memory: activations computed anew, on the host, block by block."""

from newllm_lib.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submodules=["blocks", "low_precision"],
)
