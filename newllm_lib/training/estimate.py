"""What a run will need, before anything is allocated: parameters, memory, time."""

from __future__ import annotations

from newllm_lib import training
from newllm_lib.device import Device
from newllm_lib.errors import NewLLMError
from newllm_lib.recipe import Recipe
from newllm_lib.training.compile import is_walked
from newllm_lib.training.throughput import GPU_START_HOURS, TFLOPS, dtype_in, gain

# Tokens a second of whole training steps, measured, by device, parameters and gradient_checkpointing.
_MEASURED: dict[tuple[str, int, str], float] = {
    ("h100", 1_513_995_520, "offload"): 32_600,
    ("h100", 1_513_995_520, "off"): 43_700,
}
# The sequential recurrence goes token by token. Measured: two CPU cores train it 4.4 times slower than the
# parallel one (653 tokens/s against 2,880); an H100 needs 0.6 ms for a token, forward and backward, however
# many texts there are (77 ms for 128).
_WALKING_ON_CPU, _GPU_SECONDS_A_TOKEN = 4.4, 0.6e-3
# Bytes of text in the named sources' training splits; others are known only once they are read.
_SOURCE_BYTES = {"demo": 12.0e6, "wikitext": 10.8e6, "ultrachat": 8.2e9, "ultrachat_200k": 1.3e9}
_BYTES_PER_TOKEN = 4.0


def estimate(
    recipe: Recipe, device: Device, training_tokens: int | None = None, processes: int = 1, parts: int = 1
) -> dict:
    """`parameters` (stored, trainable), `memory_estimate_gib` of one device and `hours_estimate` (None while
    the data's size is unknown).

    Args:
        training_tokens: tokens of the training split, where they are counted already.
        processes: that share each batch.
        parts: into how many the model is cut.
    """
    if recipe.task != "train":
        from newllm_lib.training.base_needs import estimate_of_base

        return estimate_of_base(recipe, device)
    count = _parameters(recipe)
    micro = micro_batch_size(recipe, device, processes)
    hours = _hours(recipe, device, count, training_tokens)
    return {
        "parameters": count,
        "memory_estimate_gib": round(_memory_gib(recipe, device, count, micro, parts), 2),
        "hours_estimate": hours
        if hours is None or device.torch_device == "cpu"
        else round(hours / processes, 3),
    }


def fits_whole(recipe: Recipe, device: Device, parts: int = 1) -> bool:
    """Whether so many devices hold the model, gradients, optimizer state and one sequence each."""
    count = _parameters(recipe)
    return least_memory_gib(recipe, device, count, parts) <= device.memory_gib


def check_memory(recipe: Recipe, device: Device, parts: int = 1) -> None:
    """Refuse what cannot fit, before anything is allocated.

    Args:
        parts: into how many the weights, gradients and optimizer state are cut, each on a device of its own.

    Raises:
        NewLLMError: even one sequence at a time needs more than the device has; says how much, and which keys
        to turn.
    """
    count = _parameters(recipe)
    need = least_memory_gib(recipe, device, count, parts)
    if need <= device.memory_gib:
        return
    held = (
        f"{_weights_gib(recipe, count) / parts:.1f} of it for {count:,} parameters with gradients and "
        "optimizer"
    )
    keys = [] if recipe.gradient_checkpointing != "off" else ["--gradient_checkpointing on"]
    keys += (
        []
        if recipe.weights_dtype != "fp32"
        else [
            f"--weights_dtype {'fp16' if device.dtype == 'fp16' else 'bf16'} --optimizer adafactor "
            "--optimizer_in_backward true"
        ]
    )
    raise NewLLMError(
        f"This needs about {need:.1f} GiB even with one sequence at a time ({held}), and {device.name} has "
        f"{device.memory_gib:.1f}: "
        f"{', '.join([*keys, 'lower --num_layers, --hidden_size or --max_seq_length'])}, or take a smaller "
        "recipe (`newllm recipes`)."
    )


def least_memory_gib(recipe: Recipe, device: Device, parameters: int, parts: int = 1) -> float:
    """GiB that training needs with one sequence at a time."""
    return _memory_gib(recipe, device, parameters, 1, parts)


def tokens_per_second(recipe: Recipe, device: Device, parameters: int) -> tuple[float, bool]:
    """Tokens a second in training on one device, and whether that was measured there (else computed)."""
    measured = _MEASURED.get((device.kind, parameters, recipe.gradient_checkpointing))
    if measured is not None:
        return measured, True
    teraflops = TFLOPS[device.kind] * (device.cores if device.torch_device == "cpu" else gain(parameters))
    if device.dtype != dtype_in(recipe, device):  # float32 on a GPU
        teraflops /= 4
    rate = teraflops * 1e12 / (6 * parameters)
    if is_walked(recipe):
        at_once = micro_batch_size(recipe, device)
        rate = (
            rate / _WALKING_ON_CPU
            if device.torch_device == "cpu"
            else min(rate, at_once / _GPU_SECONDS_A_TOKEN)
        )
    return rate, False


def micro_batch_size(recipe: Recipe, device: Device, processes: int = 1) -> int:
    """Sequences at a time on one device: the recipe's, or the batch's largest divisor that fits."""
    per_process = max(1, recipe.batch_size // processes)
    if recipe.micro_batch_size != "auto":
        wanted = min(int(recipe.micro_batch_size), per_process)
    else:
        free = 0.7 * device.memory_gib if device.torch_device == "cuda" else min(4.0, 0.5 * device.memory_gib)
        fits = [n for n in range(1, per_process + 1) if _activations_gib(recipe, device, n) <= free]
        wanted = max(fits, default=1)
    return next(n for n in range(wanted, 0, -1) if per_process % n == 0)


def _parameters(recipe: Recipe) -> int:
    """Stored parameters of the recipe's model."""
    config = training.model_config.model_config(recipe, _vocabulary(recipe))
    return training.model_config.count_parameters(config)


def _activations_gib(recipe: Recipe, device: Device, sequences: int) -> float:
    """Tensors kept for the backward pass: of all layers, or (checkpointing) each input and one layer's."""
    # Bytes; in half precision New-LLM still keeps some tensors in float32.
    value = 4 if dtype_in(recipe, device) == "fp32" else 2 if recipe.model == "phase7" else 3
    layers, width = recipe.num_layers, _kept_channels(recipe)
    if recipe.gradient_checkpointing == "off":
        channels, inputs = layers * width, 0
    else:
        on_host = recipe.gradient_checkpointing == "offload" and device.torch_device == "cuda"
        channels, inputs = width, (2 if on_host else layers) * recipe.hidden_size
    # Stepped in the backward pass, all sequences pass a block before the next: each keeps its input.
    kept = inputs * (recipe.batch_size if recipe.optimizer_in_backward else sequences) * value
    return (
        recipe.max_seq_length * (sequences * (channels * value + _scores(recipe, device) * 4) + kept) / 2**30
    )


def _kept_channels(recipe: Recipe) -> int:
    """Channels of all the tensors that a layer keeps for a token."""
    # about 10 of the residual stream's, 10 of the context's and 3 of the MLP's width
    if recipe.model != "phase7":
        return 10 * recipe.hidden_size + 10 * recipe.context_dim + 3 * recipe.mlp_size
    branch = 5 * recipe.hidden_size + 8 * recipe.context_dim if recipe.ar_ssm else 0
    return 13 * recipe.hidden_size + branch + 4 * recipe.mlp_size  # measured: 25 widths and 4 of the MLP's


def _scores(recipe: Recipe, device: Device) -> int:
    """Numbers a token that attention in plain torch keeps: of one layer with checkpointing, else of all."""
    if recipe.model != "phase7":
        return 0
    layers = recipe.num_layers if recipe.gradient_checkpointing == "off" else 1
    if recipe.flash_attention:
        kernels = device.tensor_core_dot and recipe.kernels == "auto"
        if recipe.attention != "linear" or kernels:
            return 0
        # 64 features, chunks of 64
        return layers * (4 * recipe.hidden_size + recipe.num_heads * (8 * 64 + 3 * 64))
    return 8 * layers * recipe.num_heads * recipe.max_seq_length  # the distance's terms, scores and weights


def _memory_gib(recipe: Recipe, device: Device, count: int, sequences: int, parts: int = 1) -> float:
    logits = 3 * 128 / 1024  # chunks of the head's logits
    library = 0.4 if device.torch_device == "cpu" else 0.8
    # Sharded, three whole blocks are in memory: one at work, the next one's fetch, and gradients.
    whole = 3 * 4 * count / max(1, recipe.num_layers) / 2**30 if parts > 1 else 0.0
    return (
        _weights_gib(recipe, count) / parts
        + whole
        + logits
        + library
        + _activations_gib(recipe, device, sequences)
    )


def _weights_gib(recipe: Recipe, count: int) -> float:
    return count * _bytes_a_parameter(recipe) / 2**30


def _vocabulary(recipe: Recipe) -> int:
    return recipe.vocab_size if recipe.tokenizer in ("bpe", "words") else 50_263


def _bytes_a_parameter(recipe: Recipe) -> float:
    """Weight, gradient and optimizer state. Stepped in the backward pass, one block's gradients exist."""
    weight = 4 if recipe.weights_dtype == "fp32" else 2
    gradient = weight / recipe.num_layers if recipe.optimizer_in_backward else weight
    light = recipe.weights_dtype != "fp32" or recipe.optimizer_in_backward
    momentum = recipe.momentum_bits / 8 * 33 / 32  # each 128 share a scale
    adamw = 8 if recipe.weights_dtype == "fp32" else 4
    state = {
        "adamw": adamw,
        "muon": momentum if light else 8,
        "adafactor": momentum,
        "adamw8bit": 2.1,
        "adamw4bit": 1.1,
    }
    return weight + gradient + state[recipe.optimizer]


def _hours(recipe: Recipe, device: Device, count: int, training_tokens: int | None) -> float | None:
    if training_tokens is None:
        known = (
            _SOURCE_BYTES.get(recipe.data) if recipe.data_dir is None and recipe.max_samples is None else None
        )
        training_tokens = known and known / _BYTES_PER_TOKEN
    if not training_tokens and not recipe.max_steps:
        return None
    tokens = recipe.epochs * (training_tokens or 0)
    if recipe.max_steps:
        by_steps = recipe.max_steps * recipe.batch_size * recipe.max_seq_length
        tokens = min(tokens, by_steps) if training_tokens else by_steps
    hours = tokens / tokens_per_second(recipe, device, count)[0] / 3600
    return round(hours if device.torch_device == "cpu" else hours + GPU_START_HOURS, 3)
