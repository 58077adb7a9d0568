"""What this package shows; a module is loaded when a name of it is first used."""

from newllm_lib.training.memory import blocks as blocks, low_precision as low_precision
