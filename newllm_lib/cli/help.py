"""`--help` and `--help-all` of `newllm train` and `newllm demo`: flags with a recipe's values here."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields
from typing import Any

from newllm_lib.cli.training import BASELINE
from newllm_lib.device import guess_kind
from newllm_lib.recipe import GUIDES_KEYS, Recipe, load_recipe, overrides, shipped_recipes
from newllm_lib.recipe.recipe import does_something

# The flags that the README, the guides and the notebooks use most. At most twenty of them do something for a
# recipe, and are shown for it.
COMMON = {
    "Model": {
        "model": "new_llm, tiny_gpt2 or phase7",
        "base": "the model to start from: a hub id, a folder or a run",
        "num_layers": "blocks",
        "hidden_size": "channels of the residual stream",
        "context_dim": "channels of each block's context vector",
        "attention": "hyperbolic, dot, or linear (Phase 8)",
        "lora_rank": "rank of LoRA adapters (0: train all weights)",
    },
    "Data": {
        "data": "a source by name, your file or folder, or a hub id",
        "data_dir": "folder with your own train.* files instead",
        "max_samples": "use only so many documents",
        "max_seq_length": "tokens in a training block",
    },
    "Training": {
        "from_run": "start from this run's best weights",
        "epochs": "passes over the training split",
        "max_steps": "stop after so many optimizer steps",
        "batch_size": "sequences per optimizer step",
        "learning_rate": "peak learning rate",
        "patience": "stop after so many evaluations without a gain",
        "beta": "how dear it is to move away from the base",
        "sft_warm_start": "epochs on the preferred answers before",
        "reward": "FILE.py:NAME, a function of yours, or a reward model's run",
        "num_generations": "answers to each prompt",
        "max_completion_length": "tokens of an answer at most",
    },
    "Where it goes": {
        "output_dir": "folder of the run (none: checkpoints/<name>)",
        "mirror_dir": "copy the run here while it trains (Drive, say)",
        "resume": "auto, last, never, or a checkpoint",
    },
    "Machine": {"num_gpus": "GPUs to train on, or auto: all of them"},
}
SECTIONS = {
    "run": "The run",
    "data": "The data",
    "model": "The model",
    "phase7": "Phase 7's parts",
    "start": "The start",
    "base": "Any base model",
    "training": "The training",
    "scale": "Several GPUs",
    "preference": "Preference training",
    "lora": "LoRA adapters",
}
_OWN = (
    ("--background", "go on after this command; a log to follow"),
    ("--foreground", "wait for the end (the default)"),
    ("--json", "the result alone on standard output, as one JSON object"),
    ("--debug", "show the traceback of an error"),
    ("-h, --help", "the flags people use"),
    ("--help-all", "every flag"),
)
_FIELDS = {f.name: f for f in fields(Recipe)}
_WIDEST_FLAG = 32  # columns; the text of a longer one begins on the next line


class HelpAction(argparse.Action):
    """`--help` or `--help-all`: shows the page for the recipe named before (or just after) it, with the flags
    given before it, and ends.
    """

    def __init__(self, *, left_out: tuple[str, ...], complete: bool, **options: Any):
        super().__init__(**{**options, "dest": argparse.SUPPRESS, "default": argparse.SUPPRESS})
        self.left_out, self.complete = left_out, complete

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """
        Raises:
            UsageError: an unknown recipe, or a value that it does not take.
        """
        if parser.prog.endswith(" demo"):
            recipes = _demo_recipes(overrides(namespace))
        else:
            name = namespace.name or values
            recipes = [_load(str(name), overrides(namespace))] if name else []
        page = HelpPage(parser.prog, self.left_out, recipes)
        print("\n".join(page.all_flags() if self.complete else page.common_flags()))
        parser.exit()


def _load(name: str, keys: dict[str, object]) -> Recipe:
    return load_recipe(name, keys, device_kind=guess_kind())


def _demo_recipes(keys: dict[str, object]) -> list[Recipe]:
    return [_load("demo", keys), _load("demo", {**keys, **BASELINE})]


@dataclass
class HelpPage:
    """The text of a command's help.

    Args:
        prog: the command, as in `newllm train`.
        left_out: recipe keys that are no flags of the command.
        recipes: what the command trains, the first of which gives the values (as loaded, with their
            origin); none: the general defaults.
    """

    prog: str
    left_out: tuple[str, ...]
    recipes: list[Recipe]

    def common_flags(self) -> list[str]:
        """Lines of `--help`: the flags people use, by subject."""
        sections = {
            subject: [(self._flag(_FIELDS[key]), text) for key, text in texts.items() if self._shows(key)]
            for subject, texts in COMMON.items()
        }
        return [*self._head(), *_laid_out({**sections, "This command": list(_OWN)}), *self._foot()]

    def all_flags(self) -> list[str]:
        """Lines of `--help-all`: every flag that does something for these recipes (for none: every flag)."""
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in SECTIONS.values()}
        for f in fields(Recipe):
            if f.name not in self.left_out and (not self.recipes or self._shows(f.name)):
                sections[SECTIONS[f.metadata["section"]]].append((self._flag(f), self._meaning(f)))
        guides = [(f"--{name}", text) for name, text in GUIDES_KEYS.items() if self._shows_meaning(text)]
        sections |= {"The Phase 7 guide's names for the same": guides, "This command": list(_OWN)}
        return [*self._head(), *_laid_out(sections)]

    def _head(self) -> list[str]:
        about = "Trains a recipe; the same command continues a stopped run. "
        if self.prog.endswith(" demo"):
            about = "Trains New-LLM and TinyGPT2 on real dialogues and compares them. "
        elif not self.recipes:
            about += f"RECIPE is a YAML file, or one of {', '.join(shipped_recipes())}. "
        elif self.recipes[0].origin[0] in shipped_recipes():
            about = shipped_recipes()[self.recipes[0].origin[0]] + ". "
        if self.recipes:
            about += f"Each flag stands with its value here, sized for {self.recipes[0].sized_for}."
        else:
            about += (
                "Each flag stands with its default, which a recipe may change: "
                f"`{self.prog} demo --help` shows demo's values on this machine."
            )
        return [f"usage: {self._command()} [FLAGS]", "", *_wrapped(about)]

    def _foot(self) -> list[str]:
        command = self._command().removesuffix(" RECIPE")
        return ["", *_wrapped(f"All flags: `{command} --help-all`. --num-layers is --num_layers.")]

    def _command(self) -> str:
        """The command with its recipe."""
        if self.prog.endswith(" demo"):
            return self.prog
        return f"{self.prog} {shlex.quote(self.recipes[0].origin[0]) if self.recipes else 'RECIPE'}"

    def _shows_meaning(self, meaning: str) -> bool:
        """Whether the key of ours that the meaning of a guide's flag names is shown."""
        return not self.recipes or self._shows(re.findall(r"--(\w+)", meaning)[0])

    def _shows(self, key: str) -> bool:
        if key in self.left_out:
            return False
        models = _FIELDS["model"].metadata["choices"]
        trained = [(r.task, r.model) for r in self.recipes] or [("train", model) for model in models]
        return any(does_something(_FIELDS[key], *one) for one in trained)

    def _flag(self, f: Field) -> str:
        """The flag with its value; where a second recipe has another one, with that too."""
        first, *others = self.recipes or [Recipe()]
        value = _spelled(getattr(first, f.name))
        for other in others:
            if other.depends_on(f.name) and getattr(other, f.name) != getattr(first, f.name):
                value += f" ({other.model}: {_spelled(getattr(other, f.name))})"
        return f"--{f.metadata['flag'] or f.name} {value}"

    def _meaning(self, f: Field) -> str:
        text, choices = f.metadata["help"], [str(choice) for choice in f.metadata["choices"]]
        if not all(choice in text for choice in choices):
            text += f" ({', '.join(choices)})"
        belongs = f.metadata["models"] or (f.metadata["tasks"] if f.metadata["tasks"] != ("train",) else ())
        return text if self.recipes or not belongs else f"{text} [{', '.join(belongs)}]"


def _spelled(value: object) -> str:
    """A value as it can be typed after its flag."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _laid_out(sections: dict[str, list[tuple[str, str]]]) -> Iterator[str]:
    """Sections with a heading, in two columns that fit the terminal."""
    widths = [len(flag) for lines in sections.values() for flag, _ in lines if len(flag) <= _WIDEST_FLAG]
    column = max(widths) + 4
    for title, lines in sections.items():
        if lines:
            yield from ("", title)
        for flag, text in lines:
            if len(flag) + 4 > column:
                yield from _wrapped(flag, "  ", "    ")
                flag = ""
            yield from _wrapped(text, f"  {flag}".ljust(column), " " * column)


def _wrapped(text: str, first: str = "", further: str = "") -> list[str]:
    width = max(50, min(shutil.get_terminal_size().columns, 100))
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=further, break_on_hyphens=False)
