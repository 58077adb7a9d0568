"""A recipe as a notebook form, and back: the `#@param` cell is rendered, its values become overrides.

A field of a recipe key is empty until someone types into it: then the recipe's value for this machine counts,
and the cell prints it. What is typed is what is trained, also where it is what the recipe says anyway.
`NEWLLM_NOTEBOOK_OVERRIDES`, a JSON object of fields and recipe keys, wins over the form: testers run a whole
notebook on a tiny model with it, without editing a cell.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from newllm_lib.colab import form_checks
from newllm_lib.console import say
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.recipe import Recipe, load_recipe, refuse_without_effect
from newllm_lib.recipe.init_from import decided_by_start
from newllm_lib.recipe.values import checked
from newllm_lib.runs import Run, command_of, find_run

OVERRIDES_VARIABLE = "NEWLLM_NOTEBOOK_OVERRIDES"
FORM_DEVICE = "t4"  # keys that a recipe has are looked up as Colab's free GPU has them
LINE = 120


@dataclass(frozen=True)
class Field:
    """One line of a form. A recipe key takes type and choices from the recipe."""

    name: str
    english: str
    japanese: str
    default: object = None
    choices: tuple[str, ...] = ()
    free: bool = False  # the choices are proposals: anything else may be typed
    minimum: float | None = None  # of a number that is no recipe key
    means: dict = field(default_factory=dict)  # a tick: the recipe keys that it stands for

    @property
    def title(self) -> str:
        """What the field is called where people are told about it: `Epochs`."""
        return re.split(r"[:(,]", self.english)[0].strip()

    @property
    def is_recipe_key(self) -> bool:
        return self.name in _KEYS

    @property
    def is_empty_at_first(self) -> bool:
        return self.is_recipe_key and (not self.options() or "" in self.options())

    def default_in(self, recipe: Recipe):
        """What the form shows: of a recipe key nothing, or the recipe's choice; else the field's own."""
        if not self.is_recipe_key:
            return self.default
        return "" if self.is_empty_at_first else getattr(recipe, self.name)

    def options(self) -> tuple[str, ...]:
        return self.choices or (_KEYS[self.name].metadata["choices"] if self.is_recipe_key else ())

    def parameter(self) -> str:
        """Colab's annotation: a drop-down list for choices, else an input of the field's type."""
        if self.options():
            return json.dumps(list(self.options())) + (" {allow-input: true}" if self.free else "")
        if self.is_recipe_key:
            return '{type:"string", placeholder:"as the recipe says"}'
        return f'{{type:"{self._kind()}"}}'

    def _kind(self) -> str:
        return {bool: "boolean", int: "integer", float: "number"}.get(type(self.default), "string")

    def read(self, value):
        """A typed value as the field's type.

        Raises:
            UsageError: it is none; in the form's words.
        """
        if self.is_recipe_key:
            try:
                return checked(_KEYS[self.name], value)
            except UsageError as error:
                raise UsageError(f"*{self.title}*{str(error).removeprefix(self.name)}") from None
        if self.choices and not self.free and value not in self.choices:
            offered = ", ".join(choice or "empty" for choice in self.choices)
            raise UsageError(f"*{self.title}* must be one of {offered}, not {value!r}.")
        if type(self.default) in (int, float):
            return form_checks.number(self.title, value, type(self.default), self.minimum)
        kind = bool if isinstance(self.default, bool) else str
        if not isinstance(value, kind):
            raise UsageError(f"*{self.title}* must be {_KINDS[kind]}, not {value!r}.")
        return value


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
        """The cell's values as settings; says what will be trained, and what the fields left alone mean.

        Raises:
            UsageError: a value that cannot be, in the form's words; or `NEWLLM_NOTEBOOK_OVERRIDES` is not a
            JSON object.
        """
        global _form
        _form, defaults = self, self.defaults()
        unknown = set(values) - set(defaults)
        if unknown:
            raise UsageError(
                f"The form has no field {sorted(unknown)[0]!r}: run the settings cell as it came."
            )
        forced = _forced()
        values = {**defaults, **values, **{k: v for k, v in forced.items() if k in defaults}}
        values = {k: v.strip() if isinstance(v, str) else v for k, v in values.items()}
        typed = {f.name: f.read(values[f.name]) for f in self.fields if values[f.name] not in ("", None)}
        for f in self.fields:
            if f.means and typed.pop(f.name, False):
                typed |= f.means
        extra = {
            f.name: typed.pop(f.name, f.default)
            for f in self.fields
            if not f.is_recipe_key and f.name not in _SPECIAL and not f.means
        }
        if is_taught(typed.get("from_run")):
            typed["base"] = typed.pop("from_run")
        name = typed.pop("recipe", self.recipe)
        if name == "auto" and self.choose:
            name = self.choose(extra)
        preset = self._sizes(typed.pop("gpu", None), typed.pop("size", None))
        own = typed | {k: v for k, v in forced.items() if k not in defaults}
        chosen = load_recipe(name, own, FORM_DEVICE, resolve_start=False)
        self._refuse_idle(chosen)
        plain = load_recipe(name, None, FORM_DEVICE, resolve_start=False)
        if chosen.from_run or "base" in own:  # then the start's sizes count
            decided = decided_by_start(own.get("model", "new_llm"))
            # a model that knows its language is taught in one pass, where a new one needs several
            decided += ("epochs",) if chosen.task != plain.task else ()
            preset = {k: v for k, v in preset.items() if k not in decided}
        for f in self.fields:  # a choice that is shown, and is what the recipe says, changes nothing
            if f.is_recipe_key and f.options() and f.name in own and own[f.name] == getattr(plain, f.name):
                del own[f.name]
        settings = Settings(name, preset | own, extra)
        offered = tuple(choice for f in self.fields if f.name == "recipe" for choice in f.choices)
        form_checks.check(self._resolved(settings), extra, self.titles(), offered)
        say(self.describe(settings, own, preset))
        return settings

    def titles(self) -> dict[str, str]:
        """What the form calls each recipe key that it has, and each other field."""
        found = {key: f.title for f in self.fields for key in (f.name, *f.means)}
        return {"base": found["from_run"], **found} if "from_run" in found else found

    def _resolved(self, settings: Settings) -> Recipe:
        """The recipe with its start's sizes; a start that is not here is said in the form's words."""
        start = settings.overrides.get("from_run")
        try:
            return settings.recipe()
        except UsageError:
            if start:
                form_checks.check_start(start, self.titles().get("from_run", "from_run"))
            raise

    def _refuse_idle(self, chosen: Recipe) -> None:
        """Raise UsageError for what was typed and does nothing in this training."""
        titles, both = self.titles(), (chosen, replace(chosen, model="tiny_gpt2"))
        for key in chosen.origin[1]:
            if key in titles and not any(recipe.depends_on(key) for recipe in both):
                what = "a New-LLM" if chosen.task == "train" else f"the model {chosen.base}"
                raise UsageError(
                    f"*{titles[key]}* does nothing where {what} is trained: leave it as it came."
                )
        refuse_without_effect(chosen.origin[1], *both, spelling="{}")

    def _sizes(self, gpu: str | None, size: str | None) -> dict:
        """The overrides that *GPU* and *Size* stand for; a GPU that is named is meant, whatever runs here."""
        found = _chosen(self.presets, "size", size)
        if gpu:
            found = {"sized_for": gpu.lower()} | _chosen(self.gpus, "gpu", gpu) | found
        return found

    def describe(self, settings: Settings, own: dict, preset: dict) -> str:
        """What is trained, field by field, and where each value comes from."""
        recipe, lines = settings.recipe(), [settings.describe()]
        asked = [f for f in self.fields if f.is_recipe_key and recipe.depends_on(f.name)]
        rest = [f for f in asked if f.name not in own | preset and getattr(recipe, f.name) not in (None, "")]
        if recipe.max_steps:
            rest = [f for f in rest if f.name != "epochs"]
        for what, some in (
            ("typed", [f for f in asked if f.name in own]),
            ("by *Size* and *GPU*", [f for f in asked if f.name in preset and f.name not in own]),
            (f"left alone, so as {settings.name} says for {recipe.sized_for}", rest),
        ):
            if some:
                values = " · ".join(f"{f.title} {_shown(getattr(recipe, f.name))}" for f in some)
                lines.append(f"  {what}: {values}")
        return "\n".join(lines)


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
            what = f"pairs a step, beta {r.beta:g}" if r.has_pairs else "dialogues a step"
            return (
                f"{r.run_name}: {r.task.upper()} on {r.base} with {r.data}, {trained}, {r.epochs:g} epochs, "
                f"{r.batch_size} {what}, peak learning rate {r.scaled_learning_rate():.2g}\n{command}"
            )
        length = f"{r.max_steps:,} steps" if r.max_steps else f"{r.epochs:g} epochs"
        return (
            f"{r.run_name}: {r.num_layers} layer{'s' * (r.num_layers > 1)}, context vector of "
            f"{r.context_dim}, {length}, {r.batch_size} x {r.max_seq_length} tokens a step, peak learning "
            f"rate {r.scaled_learning_rate():.2g} (sized for {r.sized_for})\n{command}"
        )


_KEYS = {f.name: f for f in fields(Recipe) if f.name != "recipe"}
_SPECIAL = ("recipe", "gpu", "size")
_KINDS = {bool: "True or False", str: "text"}
_HELP = (
    "#@markdown An empty field follows the recipe of the data, which adapts to this machine; the cell prints "
    "its value. What is typed is what is trained. Run the cell after a change (▶).",
    "#@markdown<br>空欄はレシピの値（この機械に合わせたもの）になり、下に表示されます。入力した値はそのまま使われます。"
    "変更したらセルを実行してください（▶）。",
)
_form: Form | None = None  # the one that this notebook has read


def is_taught(start: str | None) -> bool:
    """Whether a start is taught by its own tokenizer and template (`base`), as a model of the hub is and what
    came from one, and not continued as a run of plain training is (`from_run`)."""
    if not start:
        return False
    folder = Path(start).expanduser()
    try:
        run = Run(folder) if folder.is_dir() else find_run(start)
    except NewLLMError:  # nothing here has that name: a recipe's, or the hub's
        return "/" in start
    return not run.recipe_path.is_file() or Recipe.from_yaml(run.recipe_path).task != "train"


def in_form_words(text: str) -> str:
    """An error or advice with the form's fields where it names flags: `*Epochs* 12` for `--epochs 12`.

    A flag that the form does not have becomes an argument of the training cell, `dropout=0.3`. A whole
    command (`newllm train …`) stays as it is.
    """
    titles, arguments = _form.titles() if _form else {}, []

    def said(match: re.Match) -> str:
        if _COMMAND.search(text, text.rfind("\n", 0, match.start()) + 1, match.start()):
            return match[0]
        flag, value = match["flag"].replace("-", "_"), match["value"] or ""
        key = next((k for k, f in _KEYS.items() if flag in (k, f.metadata["flag"])), None)
        if key in titles:
            return f"*{titles[key]}*{' ' + value if value else ''}"
        if key is None:
            return match[0]
        arguments.append(f"{key}={value}" if value else key)
        return f"`{arguments[-1]}`"

    found = _FLAG.sub(said, text)
    where = (
        f" In the training cell: train(settings, {arguments[0].partition('=')[0]}=…)." if arguments else ""
    )
    return f"{found.rstrip()}{where}" if where else found


# `--epochs 12`, `--lr`, but not the `--` of a word, and no full stop or bracket of the sentence around it
_FLAG = re.compile(r"(?<![\w-])--(?P<flag>[a-z][\w-]*)(?:[ =](?P<value>[\d][\w.+-]*[\w]|\d))?")

_COMMAND = re.compile(r"\bnewllm [a-z]+ [^`\n]*$")  # a command of which the next flag is a part


def _shown(value) -> str:
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


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
