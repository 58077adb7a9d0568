"""New-LLM in Python: train, measure, talk, share. The `newllm` command and the notebooks stand on the same.

    import newllm_lib as newllm

    run = newllm.train("demo", epochs=2)
    print(run.evaluate()["bits_per_byte"])
    print(run.chat("Hello!"))
    print(newllm.load("tinygpt2_demo").generate("I like", max_new_tokens=20))

Keyword arguments are a recipe's keys, as `newllm recipes show demo` lists them. Nothing heavy is imported
before it is needed.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from newllm_lib import runs
from newllm_lib.errors import NewLLMError
from newllm_lib.recipe import Recipe, load_recipe, refuse_without_effect, shipped_recipes
from newllm_lib.runs import resolve_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from newllm_lib.checkpoints import LoadedModel
    from newllm_lib.generation import ChatSession

P = ParamSpec("P")
T = TypeVar("T")
_FLAG = re.compile(r"(?<![\w-])--([a-z][\w-]*)")


@contextlib.contextmanager
def _python_words() -> Iterator[None]:
    """Errors name arguments as Python does: `epochs=`, not `--epochs`."""
    try:
        yield
    except NewLLMError as error:
        line = _FLAG.sub(lambda match: f"{match[1].replace('-', '_')}=", str(error))
        raise type(error)(line.replace(" in the command line", "")) from error


def _in_python_words(function: Callable[P, T]) -> Callable[P, T]:
    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with _python_words():
            return function(*args, **kwargs)

    return wrapped


class Model:
    """A model that is ready to write.

    Attributes:
        name: how it was found: the run's name, the folder, the hub id.
        model: a transformers causal language model, in evaluation mode.
        tokenizer: its own.
        recipe: the record of its training; None where its folder holds none.
    """

    def __init__(self, loaded: LoadedModel):
        self.name: str = loaded.location.title()
        self.model: PreTrainedModel = loaded.model
        self.tokenizer: PreTrainedTokenizerBase = loaded.tokenizer
        self.recipe: Recipe | None = loaded.recipe
        self._session: ChatSession | None = None

    def __repr__(self) -> str:
        return f"Model({self.name!r})"

    @_in_python_words
    def generate(self, prompts: str | Sequence[str], **settings: Any) -> str | list[str]:
        """Continue a text, or several.

        Args:
            prompts: the beginning of a document, or a list of them.
            settings: of `newllm_lib.generation.Settings`: temperature, top_k, top_p, repetition_penalty,
                max_new_tokens, seed.

        Returns:
            the continuation without its prompt; a list of them for a list.

        Raises:
            UsageError: a setting out of its range.
        """
        from newllm_lib.generation import complete

        return complete(self.model, self.tokenizer, prompts, **settings)

    @_in_python_words
    def chat(self, text: str, **settings: Any) -> str:
        """Say something and return the answer. The conversation goes on until `reset`.

        Args:
            text: the user's turn.
            settings: as for `generate`; they stay until they are changed.
        """
        from newllm_lib.generation import ChatSession

        if self._session is None:
            self._session = ChatSession(self.model, self.tokenizer)
        if settings:
            self._session.use(replace(self._session.settings, **settings))
        return "".join(self._session.reply(text))

    def reset(self) -> None:
        """Forget the conversation."""
        self._session = None


class Run(runs.Run):
    """A training's folder: its figures, its models, and what one does with them.

    Args:
        path: the folder.
    """

    _loaded: Model | None = None

    @property
    def status(self) -> dict:
        """What the run says of itself: state ("done", "interrupted", …), step, best figure."""
        return runs.read_status(self)

    @_in_python_words
    def evaluate(self, split: str = "test", **options: Any) -> dict:
        """Measure the best model. See `evaluate`."""
        return evaluate(self, split, **options)

    def load(self) -> Model:
        """The best model; loaded once."""
        if self._loaded is None:
            self._loaded = load(self)
        return self._loaded

    def chat(self, text: str, **settings: Any) -> str:
        """Say something to the best model and return its answer. See `Model.chat`."""
        return self.load().chat(text, **settings)

    def generate(self, prompts: str | Sequence[str], **settings: Any) -> str | list[str]:
        """Let the best model continue a text, or several. See `Model.generate`."""
        return self.load().generate(prompts, **settings)

    @_in_python_words
    def export(self, output_dir: str | Path | None = None) -> Path:
        """Write the best model as a folder for others, with a model card, and return that folder.

        Args:
            output_dir: default: `export/` in the run's folder. Only an earlier export is ever replaced.
        """
        from newllm_lib.export.folder import export

        return export(self, output_dir)


@_in_python_words
def train(recipe: str = "demo", **keys: Any) -> Run:
    """Train a recipe; the same call continues a run that was stopped, and returns one that is finished.

    Args:
        recipe: a recipe's name ("demo", "text", "dolly", …) or a YAML file.
        keys: the recipe's keys that are to be other than it says: `epochs=2`, `data_dir="my_texts"`,
            `num_layers=4`, `base="Qwen/Qwen2.5-0.5B"`.

    Returns:
        the run. Ctrl-C, and a notebook's stop button, save before they end the call.

    Raises:
        UsageError: no such recipe or key, or a value that it does not take.
        Interrupted: it was stopped, after saving.
        NewLLMError: training failed; says why.
    """
    from newllm_lib.training import train as run_training

    wanted = load_recipe(recipe, keys)
    refuse_without_effect(wanted.origin[1], wanted)
    return Run(run_training(wanted).path)


@_in_python_words
def sft(base: str | Path | runs.Run, data: str | Path = "dolly", **keys: Any) -> Run:
    """Teach any causal language model to answer, by TRL's `SFTTrainer`, in a run folder like any other.

    Args:
        base: a hub id, a folder, or a run. Its own tokenizer and chat template are used.
        data: a recipe with dialogues ("dolly", "dailydialog", …), a data set of the hub, or a folder or file
            of your own.
        keys: the recipe's keys, as for `train`: `lora_rank=16` (0: all weights), `load_in="4bit"`.

    Returns:
        the run. Raises: as `train`.
    """
    named = base.path if isinstance(base, runs.Run) else base
    if data in shipped_recipes():
        return train(str(data), base=str(named), **keys)
    place = "data_dir" if Path(data).is_dir() else "data"
    return train("sft", base=str(named), **{place: str(data)}, **keys)


@_in_python_words
def load(model: str | Path | runs.Run, which: str = "best", *, device: str | None = None) -> Model:
    """Load a model by whatever name it has.

    Args:
        model: a run (its name or folder), an exported or any other transformers folder, adapters, or a hub
            id.
        which: of a run "best", "last" or "checkpoint-N".
        device: "cpu" or "cuda" (default: the GPU where there is one).

    Raises:
        UsageError: there is none. NewLLMError: it is damaged.
    """
    from newllm_lib.checkpoints import load_model
    from newllm_lib.device import probe

    found = model if isinstance(model, runs.Run) else resolve_path(str(model))
    return Model(load_model(found, which, device=device or probe().torch_device))


@_in_python_words
def evaluate(model: str | Path | runs.Run, split: str = "test", **options: Any) -> dict:
    """Measure a model on held-out text.

    Args:
        model: as for `load`.
        split: "test", "validation" or "train" of the data.
        options: `data=` (a recipe's name or a hub id), `data_dir=`, `loss_on=`: on other text than it was
            trained on; `baselines=True`: count unigram and bigram tables of the same text too.

    Returns:
        bits_per_byte, perplexity, accuracy, tokens and more: see `newllm_lib.evaluation.metrics.evaluate`.
    """
    from newllm_lib.evaluation.evaluate_run import EvaluationData, evaluate_run

    named = {key: options.pop(key) for key in ("data", "data_dir", "loss_on") if key in options}
    found = model if isinstance(model, runs.Run) else resolve_path(str(model))
    return evaluate_run(found, EvaluationData(split, **named), **{"baselines": False, **options})


@_in_python_words
def compare(model_a: str | Path | runs.Run, model_b: str | Path | runs.Run, **options: Any) -> dict:
    """Two models on the same held-out text: a table and a picture, saved in the first one's folder.

    Args:
        model_a: as for `load`.
        model_b: what it is compared with, as for `load`.
        options: `output_dir=`, `samples=`, `speed=`; see `newllm_lib.evaluation.compare.compare.compare`.
    """
    from newllm_lib.evaluation.compare.compare import compare as compare_models

    a, b = (one if isinstance(one, runs.Run) else resolve_path(str(one)) for one in (model_a, model_b))
    return compare_models(a, b, **options)


def list_runs(folder: str | Path | None = None) -> list[Run]:
    """The runs below `folder` (default: `checkpoints/` here), by name."""
    return [Run(run.path) for run in runs.list_runs(Path(folder) if folder else None)]
