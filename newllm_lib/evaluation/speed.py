"""A model's speed and memory on this machine: medians over repeats, after a warm-up."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable

import torch

from newllm_lib.evaluation.memory import peak_memory
from newllm_lib.generation.stateful import IncrementalDecoder, autocast, eval_mode, model_device, window

MIB = 2**20
_LOGITS = 2**28  # most logits of one timed forward pass: 1 GiB in float32


def measure_speed(
    model,
    *,
    batch_size: int | None = None,
    length: int = 128,
    repeats: int = 5,
    decode_tokens: int = 32,
    dtype: str | torch.dtype | None = None,
    training: bool = True,
) -> dict:
    """Time the model where it is, on random tokens. Weights, gradients and mode are left as they were.

    Args:
        batch_size: sequences at a time (default: 16 on a CPU, 128 on a GPU, fewer with a large
            vocabulary).
        length: tokens in a sequence (lowered to the window of a model that has one).
        decode_tokens: tokens generated one by one, batch 1, for the decoding speed.
        training: also time forward and backward together (no optimizer step).

    Returns:
        batch_size, length, ms_per_batch and tokens_per_second (forward pass), training_ms_per_batch and
        training_tokens_per_second (None without `training`), decode_tokens_per_second, decode_memory_bytes
        (what one text holds between two tokens after `length` tokens), peak_memory_mib (weights and one
        forward pass, with backward pass if `training`; no optimizer state; see memory.py).
    """
    device = model_device(model)
    length = min(length, window(model) or length)
    random = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    if batch_size is None:
        batch_size = max(1, min(16 if device.type == "cpu" else 128, _LOGITS // (length * vocabulary)))
    shape = batch_size, length
    ids = torch.randint(vocabulary // 2, vocabulary, shape, generator=random).to(device)  # no control tokens

    def forward():
        with eval_mode(model), autocast(device, dtype):
            model(input_ids=ids, use_cache=False)

    def forward_backward():
        with _training(model), autocast(device, dtype):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)

    steps = [forward] + ([forward_backward] if training else [])
    for step in steps:
        step()  # warm-up: memory pools, kernel choice
    held = sum(p.nbytes for p in model.parameters()) + peak_memory(steps[-1], device)
    forward_seconds = _median_seconds(forward, repeats, device)
    training_seconds = _median_seconds(forward_backward, repeats, device) if training else None
    decode_seconds, carried = _decode(model, ids[0].tolist(), decode_tokens, device, dtype)
    tokens = batch_size * length
    return {
        "batch_size": batch_size,
        "length": length,
        "ms_per_batch": 1000 * forward_seconds,
        "tokens_per_second": tokens / forward_seconds,
        "training_ms_per_batch": 1000 * training_seconds if training_seconds is not None else None,
        "training_tokens_per_second": tokens / training_seconds if training_seconds is not None else None,
        "decode_tokens_per_second": 1 / decode_seconds,
        "decode_memory_bytes": carried,
        "peak_memory_mib": held / MIB,
    }


@contextlib.contextmanager
def _training(model):
    """The model as it trains (dropout on), with its mode and torch's random state put back afterwards."""
    was_training, device = model.training, model_device(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        model.train()
        try:
            yield
        finally:
            model.train(was_training)


def _median_seconds(step: Callable[[], None], repeats: int, device: torch.device) -> float:
    times = []
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        step()
        _wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _decode(model, ids: list[int], count: int, device, dtype) -> tuple[float, int]:
    """Seconds a token in greedy decoding, and the bytes carried after `len(ids)` tokens."""
    reader = IncrementalDecoder(model)
    with eval_mode(model), autocast(device, dtype):
        reader.read(ids)
        carried = reader.carried_bytes()
        seconds = (_seconds_by_state if reader.has_state else _seconds_by_keys)(
            model, reader, ids, count, device
        )
    return seconds, carried


def _seconds_by_state(model, reader: IncrementalDecoder, ids: list[int], count: int, device) -> float:
    from newllm_lib.generation.decoding import Steps
    from newllm_lib.generation.sampling import Sampler, Settings

    steps = Steps(model, 1, Sampler(Settings(temperature=0), [], device), [])
    steps.begin(reader.carried, reader.read(ids[:1]).unsqueeze(0), [[]])
    times = []
    for _ in range(max(3, count // steps.at_once)):
        start = time.perf_counter()
        steps.run(steps.at_once)  # ends when the tokens are here
        times.append((time.perf_counter() - start) / steps.at_once)
    return statistics.median(times)


def _seconds_by_keys(model, reader: IncrementalDecoder, ids: list[int], count: int, device) -> float:
    """A prompt short enough that no window is ever full in the timed part."""
    reader.reset()
    logits, times = reader.read(ids[: max(1, reader.window - count)]), []
    for _ in range(min(count, reader.window - 1)):
        start = time.perf_counter()
        logits = reader.read([int(logits.argmax())])  # int() waits for the device
        _wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
