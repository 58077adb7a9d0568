"""What is measured, and how: `newllm bench NAME` from a clone; figures go to `results.csv`."""

BENCHMARKS = {
    "speed": "whole training steps of New-LLM and its peers: tokens/s, memory, seconds to the first step",
    "decode": "single tokens after short and long histories: tokens/s, memory",
    "quality": "New-LLM and its peers trained on the same tokens: bits per byte of a test text",
    "ops": "single operations beside their references and peers: medians, bytes moved, memory",
    "phase7": "whole training steps of 1.5 billion parameters: memory, tokens/s, MFU, and what fits",
    "phase8": "Phase 8 beside Phase 7: quality, speed and memory over the length of the text",
    "variants": "what Phase 7's parts and the low-memory optimizers are worth, at equal sizes and tokens",
    "scaling": "the same training by one GPU and by several: tokens/s and losses",
    "scaling_model": "what a training would take on more GPUs than were measured: a model on paper",
    "t4_roofline": "what a step asks of a T4 (operations, bytes, launches), and the time it takes at least",
    "dpo": "preference training: time and memory beside plain TRL, and whether it works",
    "ladder": "one start, two ways on: --from and --base, with several seeds",
    "sft": "instruction training of a base: time and memory beside plain TRL",
    "streaming": "a large dialogue set from the hub to packed tokens: memory, speed, the first batch",
    "first_step": "the wait from `newllm train` to its first logged loss",
    "whole_run": "a whole `newllm train`: wall-clock, where it went, memory",
    "evaluation": "evaluating beside training, in one run: tokens/s of both, waiting for context health",
    "time_to_quality": "New-LLM and its peers on one text for equal seconds: bits per byte over the seconds",
    "table": "no measurement: the tables of docs/results from results.csv",
}
ALIASES = {"scale": "scaling"}
