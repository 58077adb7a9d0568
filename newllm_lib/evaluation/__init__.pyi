"""What this package shows; a module is loaded when a name of it is first used."""

from newllm_lib.evaluation.baselines import bigram as bigram, unigram as unigram
from newllm_lib.evaluation.batching import subset as subset
from newllm_lib.evaluation.metrics import (
    Share as Share,
    describe as describe,
    evaluate as evaluate,
    measure as measure,
)
from newllm_lib.evaluation.samples import Prompts as Prompts, answer as answer, as_markdown as as_markdown
from newllm_lib.evaluation.speed import measure_speed as measure_speed
