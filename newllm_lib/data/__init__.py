"""From a recipe to packed tokens: sources → records → tokenizer → packed splits.

Only this room knows sources, tokenizers and packing. Everyone else asks `prepare` (training) or `load_split`
(evaluating a finished run with the run's own tokenizer), and cuts blocks with `training_blocks`. These names
are loaded when first used, so that importing the package costs nothing.
"""

from newllm_lib.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
