"""Decoding with a fixed-size state: a token a step, at constant speed and memory.

A step reads the newest token, chooses the next one and keeps all it needs on the device, the choice too; on a
GPU it is one replay of a CUDA graph. The host looks at what was said only every few steps. `Text` reads and
continues one text and can be left at any token; `continue_texts` continues many at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch

from newllm_lib.generation.sampling import Sampler, Settings, until_stop
from newllm_lib.generation.stateful import IncrementalDecoder, eval_mode, model_device, unwrapped
from newllm_lib.ops.common.dispatch import uncollected

# steps between two looks of the host: on a GPU each look lets it wait for a moment
_AT_ONCE = {"cpu": 1, "cuda": 16}
_PREFILL = 512  # tokens of a row that are read in one forward pass
REMEMBERED = 256  # latest tokens of earlier answers that a repetition penalty looks at


class Steps:
    """One decoding step for a batch of rows, with everything it reads and writes in buffers of its own.

    Args:
        model: one that carries a state.
        stop: ids that end a row; from then on its state stays as it is.
    """

    def __init__(self, model, rows: int, sampler: Sampler, stop: Sequence[int]):
        self.model, self.sampler, device = model, sampler, model_device(model)
        self.on_gpu = device.type == "cuda"
        self.at_once = _AT_ONCE.get(device.type, 1)
        vocabulary, inner = model.config.vocab_size, unwrapped(model).model
        self.state = inner.initial_state(rows)
        self.token = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.finished = torch.zeros(rows, dtype=torch.bool, device=device)
        penalty = sampler.settings.repetition_penalty != 1
        self.seen = torch.zeros(rows, vocabulary, dtype=torch.bool, device=device) if penalty else None
        self.stop = torch.tensor(list(stop), dtype=torch.long, device=device)
        self.uniform = None if sampler.greedy else torch.zeros(self.at_once, rows, device=device)
        self.said = torch.zeros(self.at_once, rows, dtype=torch.long, device=device)
        self.index = torch.zeros(1, dtype=torch.long, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        # Only where nothing asks the device.
        if self.on_gpu and getattr(model.config, "recurrence", None) == "parallel":
            self._capture()

    def begin(self, state: torch.Tensor, logits: torch.Tensor, seen: Sequence[Sequence[int]]) -> list[int]:
        """Start from a prefill: state (rows, layers, size), logits (rows, vocab) of the next token.

        Args:
            seen: for each row the ids that a repetition penalty looks at so far.

        Returns:
            the first token of each row.
        """
        self.state.copy_(state)
        self.finished.zero_()
        if self.seen is not None:
            self.seen.zero_()
            for row, ids in enumerate(seen):
                self.seen[row, list(ids)] = True
        uniform = None if self.uniform is None else self.sampler.uniform(len(logits)).to(logits.device)
        self._take(self.sampler.choose(logits, self.seen, uniform))
        return self.token.flatten().tolist()

    def run(self, count: int) -> list[list[int]]:
        """`count` (at most `at_once`) more tokens, (rows, count); after a row's stop they mean nothing."""
        if self.uniform is not None:
            self.uniform[:count].copy_(self.sampler.uniform(count, self.uniform.shape[1]), non_blocking=True)
        self.index.zero_()
        with eval_mode(self.model):
            for _ in range(count):
                self._step() if self.graph is None else self.graph.replay()
        return self.said[:count].T.tolist()

    def _step(self) -> None:
        output = self.model(input_ids=self.token, state=self.state, use_cache=True, logits_to_keep=1)
        uniform = None if self.uniform is None else self.uniform.index_select(0, self.index).squeeze(0)
        chosen = self.sampler.choose(output.logits[:, -1], self.seen, uniform)
        self.state.copy_(torch.where(self.finished[:, None, None], self.state, output.state))
        self.said.index_copy_(0, self.index, chosen.unsqueeze(0))
        self.index += 1
        self._take(chosen)

    def _take(self, chosen: torch.Tensor) -> None:
        self.token.copy_(chosen.unsqueeze(1))
        self.finished |= torch.isin(chosen, self.stop)
        if self.seen is not None:
            self.seen.scatter_(1, self.token, True)

    def _capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with eval_mode(self.model), torch.cuda.stream(stream):
            for _ in range(2):  # what is set up or compiled at a first call must not be captured
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        self.index.zero_()
        self.graph = torch.cuda.CUDAGraph()
        # other threads may save a checkpoint meanwhile: what they ask of the device is not this recording's
        recording = torch.cuda.graph(self.graph, capture_error_mode="thread_local")
        with eval_mode(self.model), uncollected(), recording:
            self._step()


class Text:
    """One text that a model reads and continues; any model, with or without a state.

    `unread` holds what was said but not read yet; whoever adds to the text appends there.
    """

    def __init__(self, model, stop: Sequence[int], reserved: Sequence[int]):
        self.reader, self.stop, self.reserved = IncrementalDecoder(model), frozenset(stop), list(reserved)
        self.unread: list[int] = []
        self.use(Settings())

    def use(self, settings: Settings) -> None:
        """Choose by these settings from now on, with a fresh random state."""
        self.settings = settings
        self.sampler = Sampler(settings, self.reserved, self.reader.device)
        self._steps: Steps | None = None  # a captured step is made when it is first needed

    def reset(self) -> None:
        """Forget the text."""
        self.reader.reset()
        self.unread, self.stopped = [], False
        self.recent: list[int] = []

    def write(self, count: int) -> Generator[int, None, None]:
        """Up to `count` tokens; ends early, with `stopped` set, at a stop, which is not given out.

        It can be left at any token, also by an exception: what was given out then counts as said, and nothing
        else.
        """
        self.stopped = False
        with eval_mode(self.reader.model):
            logits = self.reader.read(self.unread)
        self.unread = []
        yield from (self._from_state if self.reader.has_state else self._from_keys)(logits, count)

    def _from_keys(self, logits: torch.Tensor, count: int) -> Iterator[int]:
        for left in range(count, 0, -1):
            token = self.sampler(logits, self.recent)
            if self._ends(token):
                return
            yield token
            if left > 1:
                with eval_mode(self.reader.model):
                    logits = self.reader.read(self.unread)
                self.unread = []

    def _from_state(self, logits: torch.Tensor, count: int) -> Iterator[int]:
        if self._steps is None:
            self._steps = Steps(self.reader.model, 1, self.sampler, sorted(self.stop))
        (token,) = self._steps.begin(self.reader.carried, logits.unsqueeze(0), [self.recent])
        if self._ends(token):
            return
        yield token
        left = count - 1
        while left > 0:
            size = min(left, self._steps.at_once)
            with self._kept_as_far_as_given() as given:
                (tokens,) = self._steps.run(size)
                for token in tokens:
                    if self._ends(token):
                        return
                    given.append(token)
                    yield token
            left -= size

    @contextlib.contextmanager
    def _kept_as_far_as_given(self) -> Iterator[list[int]]:
        """The state goes on by whole batches of steps; whoever leaves in the middle of one finds it where the
        text ends.

        Yields:
            a list for the tokens that are given out.
        """
        assert self._steps is not None
        before, unread = self._steps.state.clone(), self.unread
        given: list[int] = []
        try:
            yield given
        except BaseException:  # also the generator's end: the batch is read again, but for its newest token
            self.reader.carried = before
            if given:
                with eval_mode(self.reader.model):
                    self.reader.read([*unread, *given[:-1]])
            raise
        self.reader.carried = self._steps.state.clone()  # at a stop it is the one that chose the stop

    def _ends(self, token: int) -> bool:
        if token in self.stop:
            self.stopped, self.unread = True, []
            return True
        self.unread = [token]
        self.recent = [*self.recent, token][-REMEMBERED:]
        return False


def continue_texts(
    model, prompts: Sequence[Sequence[int]], settings: Settings, stop: Sequence[int], reserved: Sequence[int]
) -> list[list[int]]:
    """Continuations of prompts (token ids), up to a stop (not included) or `settings.max_new_tokens`.

    Args:
        model: one that carries a state.
    """
    sampler = Sampler(settings, reserved, model_device(model))
    steps = Steps(model, len(prompts), sampler, stop)
    state, logits = read_prompts(model, prompts)
    said = [[token] for token in steps.begin(state, logits, prompts)]
    left = settings.max_new_tokens - 1
    while left > 0 and not bool(steps.finished.all()):
        size = min(left, steps.at_once)
        for row, tokens in zip(said, steps.run(size), strict=True):
            row += tokens
        left -= size
    return [until_stop(row, set(stop)) for row in said]


def read_prompts(model, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prefill in bounded pieces from empty states: states (rows, layers, size), last logits (rows, vocab)."""
    device, width = model_device(model), max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    state: Any = None
    output: Any = None
    with eval_mode(model):
        for start in range(0, width, _PREFILL):
            piece, valid = ids[:, start : start + _PREFILL], mask[:, start : start + _PREFILL]
            output = model(
                input_ids=piece, attention_mask=valid, state=state, use_cache=True, logits_to_keep=1
            )
            state = output.state
    return state, output.logits[:, -1]
