"""What an answer is worth: a Python function of the user's, or a reward model that `newllm train reward`
made.

A function is a program. It is loaded from exactly the file that the user named with `--reward`, never because
a record, a mirror's copy or a recipe's file names one (`recipe.loading` refuses those).
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from traceback import walk_tb
from typing import Any

from newllm_lib.checkpoints import load_reward_model
from newllm_lib.data.preferences.encode import encode_answer, encode_prompt
from newllm_lib.data.records import Message
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.evaluation.preferences import text_rewards

_FORM = "def NAME(completions, prompts, **columns) -> list of numbers"


class Reward(ABC):
    """Gives each answer a number.

    Attributes:
        name: as logs and cards call it; `named`: as the record names it, from any folder.
        fingerprint: the same as long as it gives the same.
    """

    name: str
    named: str
    fingerprint: str

    @abstractmethod
    def __call__(
        self, conversations: Sequence[Sequence[Message]], completions: Sequence[str], columns: dict[str, list]
    ) -> list[float]:
        """A number for each of `completions`, which answer `conversations`; `columns`: of their rows."""


def load_reward(named: str | None, device: str) -> Reward:
    """What `--reward` names: `FILE.py:function`, or a run of `newllm train reward`.

    Raises:
        UsageError: nothing is named, or there is no such file, function or run.
        NewLLMError: the file cannot be run, or the reward model is not whole.
    """
    if named is None:
        raise UsageError(
            "GRPO needs a reward: --reward FILE.py:NAME, a Python function of yours "
            f"(`{_FORM}`), or --reward RUN, of `newllm train reward`."
        )
    return RewardFunction(named) if ".py:" in named else RewardModel(named, device)


class RewardFunction(Reward):
    """A Python function `(completions, prompts, **columns) -> list of numbers`: texts of answers, the
    questions that they answer, and the data's other columns, `messages` among them: the whole
    conversations."""

    def __init__(self, named: str):
        place, _, name = named.rpartition(":")
        path = Path(place).expanduser().absolute()
        self.path, self.name, self.function = path, name, _function(path, name, named)
        self.fingerprint = hashlib.blake2b(path.read_bytes() + name.encode(), digest_size=16).hexdigest()
        self.named = f"{path}:{name}"

    def __call__(self, conversations, completions, columns):
        prompts = [messages[-1].content for messages in conversations]
        whole = [[message._asdict() for message in messages] for messages in conversations]
        try:
            found = self.function(
                completions=list(completions), prompts=prompts, **{"messages": whole, **columns}
            )
        except (Exception, SystemExit) as error:  # whatever a program of the user's comes to
            raise NewLLMError(f"--reward {self.named} raised {_cause(error, self.path)}.") from error
        return self._checked(found, len(completions))

    def _checked(self, found: Any, count: int) -> list[float]:
        """Raises NewLLMError where it is no list of so many finite numbers."""
        try:
            values = list(found)
        except TypeError:
            raise NewLLMError(
                f"--reward {self.named} gave {type(found).__name__}, not a list of {count} numbers."
            ) from None
        if len(values) != count:
            raise NewLLMError(
                f"--reward {self.named} gave {len(values)} values for {count} answers: one number for each."
            )
        numbers = []
        for value in values:
            try:
                numbers.append(float("nan") if isinstance(value, str) else float(value))
            except (TypeError, ValueError):
                numbers.append(math.nan)
            if not math.isfinite(numbers[-1]):
                raise NewLLMError(f"--reward {self.named} gave {value!r}, which is no finite number.")
        return numbers


class RewardModel(Reward):
    """A reward model of a run, each answer read after its conversation."""

    def __init__(self, named: str, device: str):
        loaded = load_reward_model(named, device=device)
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.name, self.named = loaded.location.title(), named
        weights = sorted(loaded.folder.glob("*.safetensors"))
        self.fingerprint = hashlib.blake2b(
            b"".join(hashlib.blake2b(file.read_bytes()).digest() for file in weights), digest_size=16
        ).hexdigest()
        self.longest = loaded.recipe.max_seq_length

    def __call__(self, conversations, completions, columns):
        texts = []
        for messages, said in zip(conversations, completions, strict=True):
            ids = encode_prompt(self.tokenizer, messages) + encode_answer(self.tokenizer, messages, said)
            texts.append(ids[-self.longest :])
        return text_rewards(self.model, texts, self.tokenizer.pad_token_id).tolist()


def _function(path: Path, name: str, named: str) -> Callable[..., Any]:
    if not path.is_file():
        raise UsageError(f"--reward {named}: there is no file {path}.")
    spec = importlib.util.spec_from_file_location(f"newllm_reward_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # it ends with .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a script may end itself
        raise NewLLMError(f"--reward {named}: {path} cannot be run: {_cause(error, path)}.") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"--reward {named}: {path.name} has no function {name}; it is `{_FORM}`.")
    if inspect.iscoroutinefunction(function):
        raise UsageError(f"--reward {named}: {name} is async; make it a plain function.")
    return function


def _cause(error: BaseException, path: Path) -> str:
    """`ValueError (line 3): what it said`, on one line; the line is the user's file's."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    own = [line for frame, line in walk_tb(error.__traceback__) if frame.f_code.co_filename == str(path)]
    at = f" (line {own[-1]})" if own else ""
    return f"{type(error).__name__}{at}{': ' + lines[0][:200].rstrip('.') if lines else ''}"
