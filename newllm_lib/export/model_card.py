"""An exported run's model card: what it is, its training data, how well it does, how to use it."""

from __future__ import annotations

import json
from pathlib import Path

from newllm_lib.checkpoints.location import shown_name
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run

HOME = "https://github.com/rato-tokyo/new-llm"
_KINDS = {
    "new_llm": "New-LLM: no attention, a context vector of fixed size is carried from token to token",
    "tiny_gpt2": "TinyGPT2: GPT-2's architecture, sized to have as many parameters as a New-LLM",
    "phase7": "Phase 7: local hyperbolic attention gated with a state-space branch, a tensor-train embedding",
    "phase8": "Phase 8: linear attention by hyperbolic features gated with a state-space branch, a "
    "tensor-train embedding",
}
_HUB_LICENCES = {
    "MIT": "mit",
    "CC BY-SA 3.0": "cc-by-sa-3.0",
    "CC BY 4.0": "cc-by-4.0",
    "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0",
}
_DEFINITIONS = """\
- **bits per byte**: bits the model needs for each byte of the original text;
  independent of the vocabulary, and text lost in `<unk>` is charged at 8 bits a byte.
  8 is no knowledge at all.
- **perplexity**: the exponential of the mean loss per token; comparable only between models with the
  same vocabulary.
- **accuracy**: how often the most probable token was the right one."""


def foreign_card(name: str, folder: Path, from_hub: bool, licence: str | None = None) -> str:
    """The text of README.md of a model that has no record of its training here.

    Args:
        name: what it is called.
        folder: the model's folder.
        from_hub: whether the name is its id on the hub.
        licence: as its own card says it.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        license=licence,
        base_model=name if from_hub else None,
    )
    origin = "Exported from a folder that does not say on what it was trained, nor under which licence."
    if from_hub:
        origin = f"A copy of [{name}](https://huggingface.co/{name}); its licence and its card are there."
    front = f"---\n{data.to_yaml()}\n---"
    return f"{front}\n\n# {name}\n\n{origin} {_size(folder)}.\n\n## Use\n\n{_use(folder)}\n"


def model_card(
    name: str,
    best: dict | None,
    recipe: Recipe,
    folder: Path,
    command: str,
    licence_of_base: str | None = None,
) -> str:
    """The text of README.md, with the front matter that the hub reads.

    Args:
        name: what the model is called.
        best: the row of metrics of its best evaluation.
        folder: the model's folder.
        command: what trained it.
        licence_of_base: of the model that it was trained from, which binds it.
    """
    title, home, licence = _data(recipe)
    bound_by = _HUB_LICENCES.get(licence) if recipe.task == "train" else licence_of_base
    parts = [
        _front_matter(recipe, home, bound_by, name, best),
        f"# {name}\n\n{_kind(recipe)}. {_size(folder)}, trained on {title}.",
        f"## Use\n\n{_use(folder)}",
        f"## Training\n\n```bash\n{command}\n```\n\n{_settings(recipe)}",
        f"## Data\n\n{title} ({home}), licence: {licence}. A model keeps traces of what it was trained on: "
        "the licence of the data may bind its use.",
        f"## Figures\n\n{_figures(best)}\n\n{_DEFINITIONS}",
        "## Limits\n\nA small model: it writes fluent nonsense, knows little, and repeats what its data "
        "says, prejudices included. It was not made to be safe for the public.",
    ]
    return "\n\n".join(parts) + "\n"


def _kind(recipe: Recipe) -> str:
    """What the model is, in a line."""
    if recipe.task != "train":
        trained = f"adapters of rank {recipe.lora_rank}, merged" if recipe.lora_rank else "all weights"
        return f"`{shown_name(recipe.base)}` after {recipe.task.upper()} ({trained})"
    kind = "phase8" if recipe.model == "phase7" and recipe.attention == "linear" else recipe.model
    return _KINDS.get(kind, kind)


def best_row(run: Run) -> dict | None:
    """The row of metrics of the best evaluation on the validation split; None before the first."""
    return run.best_evaluation()


def training_command(recipe: Recipe, changed: dict | None = None) -> str:
    """The command that trains the same again: the recipe's name and what is unlike it."""
    from newllm_lib.recipe import load_recipe, shipped_recipes

    if recipe.recipe not in shipped_recipes():
        return "newllm train recipe.yaml    # the file beside this card"
    what = "model" if recipe.task == "train" else "base"
    named, plain = getattr(recipe, what), load_recipe(recipe.recipe, device_kind=recipe.sized_for)
    base = load_recipe(recipe.recipe, {what: named, "sized_for": recipe.sized_for})
    words = [f"newllm train {recipe.recipe} --sized_for {recipe.sized_for}"]
    words += [f"--{what} {named}"] if (recipe.task, named) != (plain.task, getattr(plain, what)) else []
    for line in recipe.differences(base):
        key = line.partition(":")[0]
        value = getattr(recipe, key)
        words.append(f"--{key} {str(value).lower() if value is None or isinstance(value, bool) else value}")
    return " ".join([*words, *(["--data_dir FOLDER"] if recipe.data_dir else [])])


def _front_matter(recipe: Recipe, home: str, licence: str | None, name: str, best: dict | None) -> str:
    """What the hub reads, by its own library: licence, data sets, the base, and the figures."""
    from huggingface_hub import EvalResult, ModelCardData

    hub_set = home.partition(",")[0].partition(":")[0] if "/" in home and not recipe.data_dir else None
    figures = {"bits per byte": "eval_bits_per_byte", "perplexity": "eval_perplexity"}
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=hub_set or "own",
            dataset_name=f"{home}, validation split",
            metric_type=what.replace(" ", "_"),
            metric_value=round(float(best[key]), 4),
        )
        for what, key in figures.items()
        if best and best.get(key) is not None
    ]
    base = recipe.base if recipe.task != "train" and "/" in str(recipe.base) else None
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification" if recipe.task == "reward" else "text-generation",
        tags=["new-llm", "newllm_lib"],
        license=licence,
        base_model=base,
        datasets=[hub_set] if hub_set else None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _data(recipe: Recipe) -> tuple[str, str, str]:
    """Title, where it is, licence."""
    from newllm_lib.data.datasets import REGISTRY

    if recipe.data_dir:
        return (
            "a folder of texts",
            f"`{Path(recipe.data_dir).name}`",
            "not known; whoever gave the texts knows it",
        )
    known = REGISTRY.get(recipe.data)
    if known is None:
        return recipe.data, recipe.data, "see the data set's own card"
    return (
        known.title,
        f"{known.home}, revision {known.revision}" if "/" not in known.home else known.home,
        known.licence,
    )


def _size(folder: Path) -> str:
    from newllm_lib.runs import safetensors_header

    count = 0
    for file in folder.glob("*.safetensors"):
        for _, shape in safetensors_header(file).values():
            size = 1
            for length in shape:
                size *= length
            count += size
    return f"{count:,} stored parameters"


def gives_scores(config: dict) -> bool:
    """Whether a config.json is a reward model's: a number for a text, and no text."""
    return any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ())


def _use(folder: Path) -> str:
    """How the folder is loaded and asked: the truth for its kind, run by the tests."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    ours, scores = bool(config.get("auto_map")), gives_scores(config)
    kind = "AutoModelForSequenceClassification" if scores else "AutoModelForCausalLM"
    trusted = ", trust_remote_code=True" if ours else ""
    asks_in_turns = (folder / "chat_template.jinja").is_file()
    asked = (
        'talk = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello to you!"}]\n'
        "prompt = tokenizer.apply_chat_template(talk, tokenize=False)\n"
        if scores
        else 'turn = [{"role": "user", "content": "Hello!"}]\n'
        "prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)\n"
        if asks_in_turns
        else 'prompt = (tokenizer.bos_token or "") + "Once upon a time"\n'
    )
    python = (
        f"```python\nfrom transformers import {kind}, AutoTokenizer\n\n"
        'place = "FOLDER_OR_REPOSITORY"\n'
        f"model = {kind}.from_pretrained(place{trusted})\n"
        f"tokenizer = AutoTokenizer.from_pretrained(place{trusted})\n"
        f"{asked}"
        'ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]\n'
    ) + (
        "print(model.eval()(ids).logits.item())  # the higher, the better the answer\n```"
        if scores
        else "answer = model.generate(ids, max_new_tokens=20)[0, ids.shape[1] :]\n"
        "print(tokenizer.decode(answer, skip_special_tokens=True))\n```"
    )
    faster = (
        f"\n\nIts program, plain torch, is in `{config['auto_map']['AutoModelForCausalLM'].partition('.')[0]}"
        f".py`. After `pip install git+{HOME}` its kernels are used instead, and "
        f"`import newllm_lib.models{'.sequence_classification' if scores else ''}` makes `trust_remote_code` "
        "needless."
        if ours
        else ""
    )
    if scores:
        return f"{python}{faster}\n\nOr as a reward: `newllm train grpo --reward PLACE`."
    return f"{python}{faster}\n\nOr `newllm chat PLACE`, and `newllm serve PLACE` for OpenAI's clients."


def _settings(recipe: Recipe) -> str:
    return (
        f"{recipe.epochs:g} epochs at most, {recipe.batch_size} x {recipe.max_seq_length} tokens a step, "
        f"{recipe.optimizer}, peak learning rate {recipe.scaled_learning_rate():.2g}, seed {recipe.seed}. "
        "Every setting stands in `recipe.yaml`."
    )


def _figures(best: dict | None) -> str:
    if best is None:
        return "Not evaluated."
    rows = [("bits per byte", f"{best['eval_bits_per_byte']:.4f}")] if "eval_bits_per_byte" in best else []
    if best.get("eval_perplexity") is not None:
        share = (
            f"vocabulary {best.get('eval_vocab_size', 0):,}, `<unk>` {best.get('eval_unk_share', 0.0):.1%}"
        )
        rows.append((f"perplexity ({share})", f"{best['eval_perplexity']:.2f}"))
    if best.get("eval_accuracy") is not None:
        rows.append(("accuracy", f"{best['eval_accuracy']:.1%}"))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"On the validation split, at step {best['step']}, the best of all evaluations:\n\n| | "
        f"|\n|---|---|\n{table}"
    )
