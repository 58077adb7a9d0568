"""The optimizers.

Begin with `build`, which makes a recipe's optimizer and the course of its learning rate. `muon` steps
matrices of one shape together; `adafactor` and `low_memory_muon` keep few bits a parameter and share
`stochastic_rounding`; `in_backward` steps each parameter while the backward pass goes on; `combined` makes
several optimizers one; `captured` records a step, loss scaling included.
"""

from newllm_lib.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
