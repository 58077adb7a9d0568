"""How the next token is chosen, and which tokens never are: one set of settings for completion, chat and notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

from newllm_lib.data.chat import END_OF_TURN
from newllm_lib.errors import UsageError

_LIMITS = {  # name: (lowest, highest, what it does)
    "temperature": (0.0, 10.0, "0: always the most probable token; 1: as the model says; higher: more surprising"),
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
    """Chooses the next token from its logits with transformers' own warpers, in the order `generate` uses them."""

    def __init__(self, settings: Settings, reserved: Sequence[int], device):
        import torch
        from transformers.generation import logits_process as warpers

        self.greedy = settings.temperature == 0
        self.random = torch.Generator(device)
        if settings.seed is None:
            self.random.seed()
        else:
            self.random.manual_seed(settings.seed)
        self.steps = []
        if settings.repetition_penalty != 1:
            self.steps.append(warpers.RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
        if reserved:
            self.steps.append(warpers.SuppressTokensLogitsProcessor(list(reserved), device=device))
        if not self.greedy:
            self.steps.append(warpers.TemperatureLogitsWarper(float(settings.temperature)))
            if settings.top_k:
                self.steps.append(warpers.TopKLogitsWarper(settings.top_k))
            if settings.top_p < 1:
                self.steps.append(warpers.TopPLogitsWarper(settings.top_p))

    def __call__(self, logits, seen: Sequence[int]) -> int:
        """The token id chosen from logits (vocab,); `seen` are the ids that a repetition penalty looks at."""
        import torch

        seen = torch.tensor([list(seen)], dtype=torch.long, device=logits.device)
        scores = logits.float().unsqueeze(0)
        for step in self.steps:
            scores = step(seen, scores)
        if self.greedy:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self.random))


def stop_tokens(tokenizer) -> list[int]:
    """Ids that end an answer: <|end|> (of a turn) and <|endoftext|>."""
    end = token_id(tokenizer, END_OF_TURN)
    found = [tokenizer.eos_token_id, tokenizer.bos_token_id, end]
    return sorted({i for i in found if i is not None})


def reserved_tokens(tokenizer, vocab_size: int) -> list[int]:
    """Ids that no answer may hold: control tokens but the stops, <unk>, and ids of the model beyond the tokenizer's."""
    control = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    control |= set(tokenizer.all_special_ids)
    return sorted((control | set(range(len(tokenizer), vocab_size))) - set(stop_tokens(tokenizer)))


def token_id(tokenizer, token: str) -> int | None:
    """Id of a control token, None where the tokenizer has none of that name."""
    return next((i for i, added in tokenizer.added_tokens_decoder.items() if added.content == token), None)
