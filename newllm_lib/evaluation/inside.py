"""What goes on in a model while it reads: bits a token, the gates of the context vector, what is
remembered."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from newllm_lib.data.templates import encode_text
from newllm_lib.errors import UsageError
from newllm_lib.generation.stateful import (
    IncrementalDecoder,
    eval_mode,
    model_device,
    resets_at_documents,
    unwrapped,
)

_AT_ONCE = 512  # tokens read in one piece
# said by people who then say other things; the filler has no names
NAMES = ("Anna", "Tom", "Maria", "John", "Emma", "Paul")
_GIVEN, _ASKED = "My name is {}.", " My name is"
_FILLER = (
    " The weather was fine and we went for a walk by the river. There were many people and some dogs. "
    "After that we had lunch, and I read a book about the sea. It was a good day, and I was happy."
)


def _first(tokenizer) -> list[int]:
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


@dataclass(frozen=True)
class Surprise:
    """A text as a model reads it.

    Attributes:
        pieces: the text of each token. bits: what each cost, -log2 of its probability. size: bytes of the
        text.
    """

    pieces: list[str]
    bits: list[float]
    size: int

    @property
    def bits_per_byte(self) -> float:
        return sum(self.bits) / self.size


def surprise(model, tokenizer, text: str) -> Surprise:
    """How many bits each token of `text` costs a model that has read what stands before it.

    Raises:
        UsageError: the text is empty.
    """
    ids = encode_text(tokenizer, text)
    if not ids:
        raise UsageError("There is no text to read: give at least a word.")
    decoder, logits, bits = IncrementalDecoder(model), None, []
    if decoder.window is None:
        bits = _bits_at_once(model, _first(tokenizer) or ids[:1], ids)
    else:
        logits = decoder.read(_first(tokenizer) or ids[:1])
        for token in ids:
            bits.append(float(-logits.float().log_softmax(-1)[token]) / math.log(2))
            logits = decoder.read([token])
    return Surprise(_pieces(tokenizer, ids), bits, len(text.encode()))


def _bits_at_once(model, before: list[int], ids: list[int]) -> list[float]:
    """The same, many tokens in a forward pass, for a model that carries a state."""
    bits, state, read = [], None, [*before, *ids]
    with eval_mode(model):
        for start in range(0, len(read) - 1, _AT_ONCE):
            part = torch.tensor([read[start : start + _AT_ONCE]], device=model_device(model))
            output = model(input_ids=part, state=state, use_cache=True)
            state, wanted = output.state, read[start + 1 : start + _AT_ONCE + 1]
            found = output.logits[0, : len(wanted)].float().log_softmax(-1)
            bits += (-found[range(len(wanted)), wanted] / math.log(2)).tolist()
    return bits[len(before) - 1 :]


def _pieces(tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token; a character of several tokens stands with the last of them."""
    pieces, shown = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        whole = "" if text.endswith("\ufffd") else text[len(shown) :]
        shown = shown if text.endswith("\ufffd") else text
        pieces.append(whole)
    return pieces


@dataclass(frozen=True)
class Gates:
    """The context vector of one layer over a text.

    Attributes:
        pieces: the text of each token. kept: (tokens, channels) float32 from 0 to 1, how much of each channel
        is kept at a token (a_t); what is
            not kept is replaced by what the token writes.
        written: (tokens, channels) float32, what it would write (silu(i_t)).
    """

    pieces: list[str]
    kept: torch.Tensor
    written: torch.Tensor

    def memory(self) -> torch.Tensor:
        """(channels,) tokens after which 1/e of a channel is left, at the mean of its gates over this
        text."""
        kept = self.kept[
            self.kept.amax(1) > 0
        ]  # a document's start clears all, which says nothing of channels
        return -1 / kept.double().clamp(1e-6, 1 - 1e-6).log().mean(0)

    def order(self) -> torch.Tensor:
        """Channels from the shortest to the longest memory."""
        return self.memory().argsort()


def gates(model, tokenizer, text: str, layer: int = -1) -> Gates:
    """The gates of a New-LLM's context vector while it reads `text`.

    Raises:
        UsageError: the model has no such gates (another architecture, or the sequential recurrence).
    """
    blocks = getattr(getattr(unwrapped(model), "model", None), "layers", None)
    context = getattr(blocks[layer], "context", None) if blocks else None
    if context is None or not hasattr(context, "forget_bias"):
        raise UsageError("Only a New-LLM with the parallel recurrence has a context vector to look at.")
    ids, seen = [*_first(tokenizer), *encode_text(tokenizer, text)], []
    hook = context.project.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    try:
        with eval_mode(model):
            model(input_ids=torch.tensor([ids], device=model_device(model)))
    finally:
        hook.remove()
    projected = torch.cat([part.reshape(-1, part.shape[-1]) for part in seen]).float().cpu()
    given, forget, _ = projected.chunk(3, -1)
    kept = torch.sigmoid(forget + context.forget_bias.detach().float().cpu())
    if _first(tokenizer) and resets_at_documents(model):
        kept[0] = 0.0  # a document knows nothing of the text before
    pieces = _pieces(tokenizer, ids[len(_first(tokenizer)) :])
    return Gates(["start"] * len(_first(tokenizer)) + pieces, kept, torch.nn.functional.silu(given))


@dataclass(frozen=True)
class Recall:
    """How probable a name is where it is asked for, tokens after it was given.

    Attributes:
        distances: tokens between the name and the question.
        known: mean probability of the name that was given. unknown: of a name that was not.
        window: tokens that the model sees at most; None: no limit.
    """

    distances: list[int]
    known: list[float]
    unknown: list[float]
    window: int | None

    @property
    def ratio(self) -> list[float]:
        """How many times likelier the name that was given is."""
        return [a / b for a, b in zip(self.known, self.unknown, strict=True)]


def recall(model, tokenizer, distances: Sequence[int], names: Sequence[str] = NAMES) -> Recall:
    """Tell the model a name, let it read on, ask for the name: its probability over the distance, a mean over
    `names`. Beside it the probability of the other names, which were not given."""
    filler = encode_text(tokenizer, _FILLER * (1 + max(distances) // 20))
    asked = encode_text(tokenizer, _ASKED)
    answers = [encode_text(tokenizer, f" {name}") for name in names]
    known, unknown = [0.0] * len(distances), [0.0] * len(distances)
    for i, name in enumerate(names):
        decoder = IncrementalDecoder(model)
        decoder.read([*_first(tokenizer), *encode_text(tokenizer, _GIVEN.format(name))])
        read = 0
        for place, distance in enumerate(sorted(distances)):
            if distance > read:
                decoder.read(filler[read:distance])
                read = distance
            chances = [_probability(decoder, asked, answer) for answer in answers]
            known[place] += chances[i] / len(names)
            unknown[place] += (sum(chances) - chances[i]) / (len(names) - 1) / len(names)
    return Recall(sorted(distances), known, unknown, IncrementalDecoder(model).window)


def _probability(decoder: IncrementalDecoder, asked: Sequence[int], answer: Sequence[int]) -> float:
    """Of `answer` after `asked`, from where the decoder is; it stays there."""
    branch = IncrementalDecoder(decoder.model)
    branch._carried, branch._recent = copy.deepcopy(decoder._carried), list(decoder._recent)
    total, logits = 0.0, branch.read(asked)
    for token in answer:
        total += float(logits.float().log_softmax(-1)[token])
        logits = branch.read([token])
    return math.exp(total)
