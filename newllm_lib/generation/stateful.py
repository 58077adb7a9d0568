"""What a model carries from token to token, and reading text once with it.

New-LLM carries one tensor of fixed size (its state); an attention model carries keys and values, limited to
its window. Everything in this package that reads text in pieces (metrics, chat, decoding speed) asks here
which of the two it is.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from typing import Any

import torch

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_READ_AT_ONCE = 512  # tokens of a long prompt in one forward pass: bounds the memory, changes nothing else


def unwrapped(model):
    """The model itself, below a PEFT wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_recurrent(model) -> bool:
    """Whether the model carries a `state` of fixed size (New-LLM) and not keys and values (attention)."""
    return "state" in inspect.signature(unwrapped(model).forward).parameters


def resets_at_documents(model) -> bool:
    """Whether a <|endoftext|> in the input clears the model's state by itself."""
    config = model.config
    return bool(getattr(config, "reset_at_bos", False)) and config.bos_token_id is not None


def window(model) -> int | None:
    """Most positions the model can see at once, in tokens; None: no limit (New-LLM)."""
    if is_recurrent(model):
        return None
    config = model.config
    return getattr(config, "n_positions", None) or getattr(config, "max_position_embeddings", None)


def model_device(model) -> torch.device:
    """Where the model's weights are."""
    return next(model.parameters()).device


def autocast(device: torch.device, dtype: str | torch.dtype | None):
    """Autocast to `dtype`: "fp32", "fp16", "bf16" or a torch dtype; None: as the weights are."""
    dtype = _DTYPES[dtype] if isinstance(dtype, str) else dtype
    if dtype in (None, torch.float32):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


@contextlib.contextmanager
def eval_mode(model):
    """The model in evaluation mode and without gradients; its mode is put back afterwards.

    `no_grad`, not `inference_mode`: what a module caches here must still be usable by the next training step.
    """
    was_training = model.training
    if was_training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if was_training:
            model.train()


class IncrementalDecoder:
    """Reads tokens in order and remembers them by what the model carries, so that nothing is read twice.

    With New-LLM the memory has one size however long the text. With attention it is the key-value cache;
    where its window is full, the newest half is read again into an empty cache (absolute positions leave no
    other way).
    """

    def __init__(self, model):
        self.model = model
        self.has_state = is_recurrent(model)
        self.window = window(model)
        self.device = model_device(model)
        self.reset()

    def reset(self) -> None:
        """Forget everything read so far."""
        self._carried: Any = None
        self._recent: list[int] = []  # attention only: the tokens in the cache

    @torch.no_grad()
    def read(self, ids: Sequence[int]) -> torch.Tensor:
        """Read `ids` (at least one). Returns the logits (vocab,) of the token that follows.

        Broken off by an exception (Ctrl-C), it is as if `ids` had not been read.
        """
        fed, recent, carried = list(ids), [], self._carried
        if not fed:
            raise ValueError("nothing to read")
        if self.window is not None:
            recent = self._recent + fed
            if len(recent) > self.window:
                recent, carried = recent[-max(1, self.window // 2) :], None
            fed = recent if carried is None else fed
            # the cache is changed in place: if this breaks off, it is built anew from _recent
            self._carried = None
        for start in range(0, len(fed), _READ_AT_ONCE):
            logits, carried = self._forward(fed[start : start + _READ_AT_ONCE], carried)
        self._carried, self._recent = carried, recent
        return logits

    def _forward(self, ids: list[int], carried) -> tuple[torch.Tensor, object]:
        tokens = torch.tensor([ids], dtype=torch.long, device=self.device)
        name = "state" if self.has_state else "past_key_values"
        output = self.model(input_ids=tokens, use_cache=True, logits_to_keep=1, **{name: carried})
        return output.logits[0, -1], getattr(output, name)

    @property
    def carried(self):
        """The state (1, layers, size) or the keys and values; None before anything was read."""
        return self._carried

    @carried.setter
    def carried(self, state: torch.Tensor) -> None:
        """Go on from this state, however it was reached (only for models with a state)."""
        self._carried = state

    def carried_bytes(self) -> int:
        """Bytes of memory that this text holds between two tokens: the state, or the keys and values."""
        if self._carried is None:
            return 0
        if isinstance(self._carried, torch.Tensor):
            return self._carried.nbytes
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self._carried.layers)
