"""How the next token is chosen, and which never are: one set of settings for completion and chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from newllm_lib.data.templates import end_of_turn
from newllm_lib.errors import UsageError

_LIMITS = {  # name: (lowest, highest, what it does)
    "temperature": (
        0.0,
        10.0,
        "0: always the most probable token; 1: as the model says; higher: more surprising",
    ),
    "top_k": (0, 10**6, "choose among this many tokens (0: all)"),
    "top_p": (0.01, 1.0, "choose among the tokens that hold this much probability"),
    "repetition_penalty": (0.1, 10.0, "above 1: avoid what was said before"),
    "max_new_tokens": (1, 10**6, "longest answer, in tokens"),
    "seed": (0, 2**31, "for the same answer again (none: another each time)"),
}


@dataclass(frozen=True)
class Settings:
    """Sampling settings; `temperature` 0 is greedy.

    Raises:
        UsageError: a value out of its range.
    """

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.95
    repetition_penalty: float = 1.0
    max_new_tokens: int = 200
    seed: int | None = None

    def __post_init__(self):
        for name, (lowest, highest, _) in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not lowest <= value <= highest:
                raise UsageError(f"{name} must be between {lowest} and {highest}, not {value}.")

    def changed(self, name: str, text: str) -> Settings:
        """These settings with one of them read from what a person typed.

        Raises:
            UsageError: no such setting, or not a number in its range.
        """
        if name not in _LIMITS:
            raise UsageError(f"There is no setting {name!r}: use {', '.join(_LIMITS)}.")
        whole = name in ("top_k", "max_new_tokens", "seed")
        value: Any
        try:
            value = None if name == "seed" and text.lower() == "none" else int(text) if whole else float(text)
        except ValueError:
            raise UsageError(f"{name} must be a {'whole ' if whole else ''}number, not {text!r}.") from None
        return replace(self, **{name: value})

    def __str__(self) -> str:
        return "\n".join(f"  {f.name} {getattr(self, f.name)}  ({_LIMITS[f.name][2]})" for f in fields(self))

    def for_generate(self) -> dict:
        """The same as arguments of transformers' `GenerationConfig`."""
        chosen = asdict(self)
        chosen.pop("seed")
        if self.temperature == 0:
            greedy = {"do_sample": False, "max_new_tokens": self.max_new_tokens}
            return greedy | {"repetition_penalty": self.repetition_penalty}
        return chosen | {"do_sample": True}


class Sampler:
    """Chooses next tokens from logits, with transformers' warpers in `generate`'s order.

    Only tensors of fixed sizes and no wait for the device, so that a decoding step can be captured in a CUDA
    graph. Chance comes in as uniform numbers, drawn on the CPU: the same seed gives the same text on
    every device, up to rounding.
    """

    def __init__(self, settings: Settings, reserved: Sequence[int], device):
        import torch

        self.settings, self.greedy, self.device = settings, settings.temperature == 0, device
        self.reserved = torch.tensor(list(reserved), dtype=torch.long, device=device)
        self.random = torch.Generator()
        if settings.seed is None:
            self.random.seed()
        else:
            self.random.manual_seed(settings.seed)

    def uniform(self, *size: int):
        """Random numbers from 0 to 1, on the CPU."""
        import torch

        return torch.rand(*size, generator=self.random)

    def choose(self, logits, seen, uniform):
        """Token ids (rows,).

        Args:
            logits: (rows, vocab).
            seen: (rows, vocab) bool, tokens that a repetition penalty lowers; None without one.
            uniform: (rows,) random numbers; unused, and None, where sampling is greedy.
        """
        import torch

        settings, scores = self.settings, logits.float()
        if settings.repetition_penalty != 1:
            lowered = torch.where(
                scores < 0, scores * settings.repetition_penalty, scores / settings.repetition_penalty
            )
            scores = torch.where(seen, lowered, scores)
        if len(self.reserved):
            scores = scores.index_fill(-1, self.reserved, -torch.inf)
        if self.greedy:
            return scores.argmax(-1)
        scores, ids = scores / settings.temperature, None
        if settings.top_k and settings.top_k < scores.shape[-1]:
            scores, ids = scores.topk(settings.top_k)
        elif settings.top_p < 1:
            scores, ids = scores.sort(-1, descending=True)
        probability = scores.softmax(-1)
        if settings.top_p < 1:  # tokens are kept until the more probable ones hold this much
            before = probability.cumsum(-1) - probability
            probability = probability.masked_fill(before >= settings.top_p, 0.0)
        reached = probability.cumsum(-1)
        # below the last that is kept, in spite of rounding
        threshold = uniform.unsqueeze(-1) * reached[:, -1:] * (1 - 1e-6)
        place = (reached <= threshold).sum(-1, keepdim=True)
        return (place if ids is None else ids.gather(-1, place)).squeeze(-1)

    def __call__(self, logits, seen: Sequence[int]) -> int:
        """The token id chosen from logits (vocab,); `seen` are the ids that a repetition penalty looks at."""
        import torch

        known = torch.zeros(1, len(logits), dtype=torch.bool, device=logits.device)
        known[0, list(seen)] = True
        uniform = None if self.greedy else self.uniform(1).to(logits.device)
        return int(self.choose(logits.unsqueeze(0), known, uniform))


def stop_tokens(tokenizer, model=None) -> list[int]:
    """Ids that end an answer: what ends a turn (<|end|>, or as the chat template ends it) and a text.

    Args:
        model: also what its generation config says ends an answer.
    """
    said = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = [tokenizer.eos_token_id, tokenizer.bos_token_id, end_of_turn(tokenizer)]
    found += said if isinstance(said, list) else [said]
    return sorted({i for i in found if isinstance(i, int)})  # a foreign configuration may say anything


def until_stop(ids: list[int], stop: set[int]) -> list[int]:
    """Token ids before the first that ends them."""
    return ids[: next((i for i, token in enumerate(ids) if token in stop), len(ids))]


def reserved_tokens(tokenizer, vocab_size: int, model=None) -> list[int]:
    """Ids that no answer may hold: control tokens but the stops, <unk>, ids beyond the tokenizer's."""
    control = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    control |= set(tokenizer.all_special_ids) | set(range(len(tokenizer), vocab_size))
    return sorted(control - set(stop_tokens(tokenizer, model)))


def token_id(tokenizer, token: str) -> int | None:
    """Id of a control token, None where the tokenizer has none of that name."""
    return next((i for i, added in tokenizer.added_tokens_decoder.items() if added.content == token), None)
