"""A recipe as a notebook form, and back: the `#@param` cell is rendered, its values become overrides.

The cell's defaults are the recipe's own values, so a field that was left as it is overrides nothing and the
recipe still adapts to the machine (fewer sequences at a time on a CPU, for example).
`NEWLLM_NOTEBOOK_OVERRIDES`, a JSON object of fields and recipe keys, wins over the form: testers run a whole
notebook on a tiny model with it, without editing a cell.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

from newllm_lib.console import say
from newllm_lib.errors import UsageError
from newllm_lib.recipe import Recipe, load_recipe, refuse_without_effect, value_types
from newllm_lib.recipe.init_from import decided_by_start
from newllm_lib.runs import command_of

OVERRIDES_VARIABLE = "NEWLLM_NOTEBOOK_OVERRIDES"
FORM_DEVICE = "t4"  # the defaults shown are those of Colab's free GPU
LINE = 120


@dataclass(frozen=True)
class Field:
    """One line of a form. A recipe key takes default, type and choices from the recipe."""

    name: str
    english: str
    japanese: str
    default: object = None
    choices: tuple[str, ...] = ()
    free: bool = False  # the choices are proposals: anything else may be typed

    @property
    def is_recipe_key(self) -> bool:
        return self.name in _KEYS

    def default_in(self, recipe: Recipe):
        """The value the form shows: the recipe's, or the field's own where it is no recipe key."""
        value = getattr(recipe, self.name) if self.is_recipe_key else self.default
        return "" if value is None and self._kind() == "string" else value

    def options(self) -> tuple[str, ...]:
        return self.choices or (_KEYS[self.name].metadata["choices"] if self.is_recipe_key else ())

    def parameter(self) -> str:
        """Colab's annotation: a drop-down list for choices, else an input of the field's type."""
        if self.options():
            return json.dumps(list(self.options())) + (" {allow-input: true}" if self.free else "")
        return f'{{type:"{self._kind()}"}}'

    def _kind(self) -> str:
        types = value_types(_KEYS[self.name]) if self.is_recipe_key else (type(self.default),)
        if str in types:
            return "string"
        if len(types) > 1:
            return "raw"  # a number or None
        return {bool: "boolean", int: "integer", float: "number"}[types[0]]


@dataclass(frozen=True)
class Form:
    """The settings cell of one notebook: its name in `settings.py`, recipe, fields, and presets.

    Three field names are special: `recipe` chooses which shipped recipe is loaded ("auto": what `choose`
    says, given the values of the fields), `size` one of `presets`, `gpu` one of `gpus`: what that GPU does in
    about the time a T4 takes for the recipe's own sizes.
    """

    name: str
    recipe: str
    fields: tuple[Field, ...]
    presets: dict[str, dict] = field(default_factory=dict)
    choose: Callable[[dict], str] | None = None
    gpus: dict[str, dict] = field(default_factory=dict)

    def defaults(self) -> dict:
        """What the fields show before anyone touches them."""
        recipe = load_recipe(self.recipe, device_kind=FORM_DEVICE)
        return {f.name: f.default_in(recipe) for f in self.fields}

    def render(self) -> str:
        """The text of the notebook's settings cell."""
        lines = ['#@title Settings · 設定 {display-mode: "form"}', *_HELP]
        defaults = self.defaults()
        for f in self.fields:
            lines.append(f"#@markdown **{f.english}** · {f.japanese}")
            lines.append(f"{f.name} = {_literal(defaults[f.name])}  #@param {f.parameter()}")
        return "\n".join([*lines, "", *self._call()])

    def _call(self) -> list[str]:
        head, line, lines = f"settings = {self.name}.read(", "   ", []
        for f in self.fields:
            part = f" {f.name}={f.name},"
            if len(line) + len(part) > LINE:
                lines.append(line)
                line = "   "
            line += part
        return [f"from newllm_lib.colab.settings import {self.name}", "", head, *lines, line, ")"]

    def read(self, **values) -> Settings:
        """The cell's values as settings; says what will be trained.

        Raises:
            UsageError: a value the recipe does not accept, or `NEWLLM_NOTEBOOK_OVERRIDES` is not a JSON
            object.
        """
        defaults = self.defaults()
        unknown = set(values) - set(defaults)
        if unknown:
            raise UsageError(
                f"The form has no field {sorted(unknown)[0]!r}: run the settings cell as it came."
            )
        forced = _forced()
        values = {**defaults, **values, **{k: v for k, v in forced.items() if k in defaults}}
        name = values.pop("recipe", self.recipe)
        if name == "auto" and self.choose:
            name = self.choose(values)
        preset = _chosen(self.gpus, "gpu", values.pop("gpu", None)) | _chosen(
            self.presets, "size", values.pop("size", None)
        )
        own, extra = {}, {}
        for f in self.fields:
            if f.name not in values:
                continue
            if not f.is_recipe_key:
                extra[f.name] = values[f.name]
            elif values[f.name] != defaults[f.name]:
                own[f.name] = values[f.name]
        own.update({k: v for k, v in forced.items() if k not in extra and k not in ("recipe", "size", "gpu")})
        chosen = load_recipe(name, own, FORM_DEVICE, resolve_start=False)
        refuse_without_effect(chosen.origin[1], chosen, replace(chosen, model="tiny_gpt2"), spelling="{}")
        if chosen.from_run:  # then the start's sizes count
            preset = {
                k: v for k, v in preset.items() if k not in decided_by_start(own.get("model", "new_llm"))
            }
        settings = Settings(name, preset | own, extra)
        say(settings.describe())
        return settings


@dataclass(frozen=True)
class Settings:
    """What a form chose: a shipped recipe, overrides of its keys, and other fields (`extra`)."""

    name: str
    overrides: dict
    extra: dict = field(default_factory=dict)

    def recipe(self, device_kind: str | None = None, **more) -> Recipe:
        """The resolved recipe; `more` overrides further keys (`model="tiny_gpt2"`).

        Args:
            device_kind: whose preset to use (default: this machine's).
        Raises:
            UsageError: unknown key or a value of the wrong type or range.
        """
        return load_recipe(self.name, {**self.overrides, **more}, device_kind)

    def arguments(self, **more) -> list[str]:
        """The same as arguments of the `newllm` command: `["train", "wikitext", "--epochs", "20"]`."""
        chosen = {**self.overrides, **more}
        recipe = load_recipe(self.name, chosen, resolve_start=False)
        # A preset is for all models: what does nothing for this one would be refused.
        chosen = {key: value for key, value in chosen.items() if recipe.depends_on(key)}
        return [
            "train",
            self.name,
            *(word for key, value in chosen.items() for word in (f"--{key}", _word(value))),
        ]

    def command(self, **more) -> list[str]:
        """The command that trains this, with the Python that runs now."""
        return command_of("newllm_lib.__main__", *self.arguments(**more), name="run")

    def describe(self) -> str:
        """Two lines: what will be trained with which values, and the command that would do the same."""
        r = self.recipe()
        command = f"the same as a command: newllm {shlex.join(self.arguments())}"
        if r.task != "train":
            trained = f"adapters of rank {r.lora_rank}" if r.lora_rank else "all weights"
            what = f"pairs a step, beta {r.beta:g}" if r.task == "dpo" else "dialogues a step"
            return (
                f"{r.run_name}: {r.task.upper()} on {r.base} with {r.data}, {trained}, {r.epochs:g} epochs, "
                f"{r.batch_size} {what}, peak learning rate {r.scaled_learning_rate():.2g}\n{command}"
            )
        length = f"{r.max_steps:,} steps" if r.max_steps else f"{r.epochs:g} epochs"
        return (
            f"{r.run_name}: {r.num_layers} layers, context vector of {r.context_dim}, {length}, "
            f"{r.batch_size} x {r.max_seq_length} tokens a step, peak learning rate "
            f"{r.scaled_learning_rate():.2g} (sized for {r.sized_for})\n{command}"
        )


_KEYS = {f.name: f for f in fields(Recipe) if f.name != "recipe"}
_HELP = (
    "#@markdown Fields left as they are follow the recipe of the data, which adapts to this machine. "
    "Run the cell after a change (▶).",
    "#@markdown<br>変更しない項目はレシピの値になります。変更したらセルを実行してください（▶）。",
)


def _chosen(presets: dict[str, dict], kind: str, name: str | None) -> dict:
    if name is None:
        return {}
    if name not in presets:
        raise UsageError(f"There is no {kind} {name!r}: use one of {', '.join(presets)}.")
    return presets[name]


def _literal(value) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _word(value) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _forced() -> dict:
    text = os.environ.get(OVERRIDES_VARIABLE, "")
    if not text:
        return {}
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{OVERRIDES_VARIABLE} is not JSON ({error.msg} at character {error.pos}): mend or unset it."
        ) from None
    if not isinstance(values, dict):
        raise UsageError(
            f'{OVERRIDES_VARIABLE} must be a JSON object such as {{"epochs": 1}}: mend or unset it.'
        )
    return values
