"""The optimizers, and the step inside the backward pass."""

from newllm_lib.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "adafactor": ["Adafactor"],
        "combined": ["CombinedOptimizer", "one_for_each"],
        "in_backward": ["OptimizerInBackward"],
        "low_memory_muon": ["LowMemoryMuon"],
        "muon": ["BatchedMuon"],
    },
)
