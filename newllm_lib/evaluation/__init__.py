"""What a run is worth: figures on held-out text, baselines, comparison, speed.

A finished run is measured by `evaluate_run.evaluate_run`, two of them beside each other by
`compare.compare.compare`.
"""

from newllm_lib.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
