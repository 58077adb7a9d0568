"""Every dialogue recipe from a hub to a conversation: `newllm train`, `evaluate` and `chat`, and the cells of
the notebooks.
"""

from __future__ import annotations

import json

import pytest

from newllm_lib.runs import Run
from tests.helpers.dialogue_sets import DIALOGUE_SETS, dialogue_hub, instructions
from tests.helpers.texts import dialogues, write_jsonl
from tests.helpers.wikitext import write_wikitext
from tests.helpers.worker import worker

TINY = {
    "sized_for": "cpu",
    "vocab_size": 300,
    "num_layers": 1,
    "hidden_size": 16,
    "context_dim": 16,
    "mlp_size": 16,
}
SHORT = {
    "max_seq_length": 32,
    "batch_size": 8,
    "epochs": 1,
    "max_steps": 6,
    "patience": 3,
    "learning_rate": 0.01,
    "logging_steps": 2,
    "evals_per_epoch": 1,
    "sample_tokens": 8,
}
FORMS = {"ultrachat": "ULTRACHAT", "ultrachat_200k": "ULTRACHAT"}  # the others are in DIALOGUE
TESTED = {
    "dailydialog": "test",
    "hh_rlhf": "test",
    "ultrachat_200k": "test",
}  # sets with a test split of their own


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with dialogue_hub(tmp_path_factory.mktemp("hub")) as server:
        write_wikitext(server.root / "datasets/Salesforce/wikitext")
        yield server


@pytest.fixture(scope="module")
def newllm(hub, tmp_path_factory):
    """Asks one process, in a folder of its own, with that hub."""
    with worker(tmp_path_factory.mktemp("here"), hub.url, {**TINY, **SHORT}) as ask:
        yield ask


def words(choices: dict) -> list[str]:
    return [word for key, value in choices.items() for word in (f"--{key}", str(value))]


def trained(newllm, argv: list[str]) -> tuple[Run, str]:
    """The run that `newllm train` made, and what it said."""
    done = newllm(argv=argv)
    assert done["code"] == 0, done["err"]
    name = next(line.split()[1] for line in done["out"].splitlines() if line.startswith("Run ")).rstrip(":")
    return Run(newllm.folder / name), done["out"]


def figures(newllm, run: Run) -> dict:
    found = newllm(argv=["evaluate", run.name, "--json"])
    assert found["code"] == 0, found["err"]
    return json.loads(found["out"])


def check_evaluation(newllm, run: Run, answers: list[str] | None) -> None:
    """`newllm evaluate` measures answers, all of them where it is known which they are, beside the tables."""
    found = figures(newllm, run)
    assert found["loss_on"] == "answers" and 0.5 < found["bits_per_byte"] < 9 and found["unk_share"] == 0
    assert {"unigram", "bigram"} == set(found["baselines"]) and found["baselines"]["bigram"][
        "bits_per_byte"
    ] > 0
    if answers is not None:
        assert found["bytes"] == sum(len(text.encode()) for text in answers)


def check_chat(newllm, run: Run) -> None:
    """`newllm chat` answers two turns with what is no control token, and leaves when it is told to."""
    talk = newllm(
        argv=["chat", run.name, "--max_new_tokens", "6", "--seed", "1"], said="hello\nthe old house\n/quit\n"
    )
    assert talk["code"] == 0, talk["err"]
    assert "It answers turn by turn." in talk["out"] and talk["out"].rstrip().endswith("Bye.")
    assert talk["out"].count("you> ") == 3 and "<|" not in talk["out"]


def check_cells(newllm, run: Run, recipe: str) -> None:
    """The notebook's cells read the result and talk."""
    shown = newllm(cells=["read", "chat"], run=str(run.path), recipe=recipe)
    assert "bits per byte of held-out answers" in shown["out"] and "the bigram table" in shown["out"]
    assert [speaker for speaker, _ in shown["turns"]] == ["you", "model"]
    assert shown["turns"][0][1].startswith("こんにちは" if recipe.endswith("_ja") else "Hello!")


@pytest.mark.parametrize("name", DIALOGUE_SETS)
def test_each_set_trains_as_its_notebook_starts_it_and_is_measured_and_talks(name, hub, newllm):
    if name == "dailydialog":  # the guide's second step: it starts from the run of the first by itself
        trained(newllm, ["train", "wikitext", *words({**TINY, **SHORT, "max_samples": 60})])
    values = {"recipe": name, **({"size": "all"} if name in FORMS else {})}
    argv = newllm(form=FORMS.get(name, "DIALOGUE"), values=values)["argv"]
    run, said = trained(newllm, argv)
    assert "loss on the answers" in said and "What it means:" in said
    assert ("starts from new_llm_wikitext" in said) == (name == "dailydialog")
    rows = list(run.metrics())
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 4, 6] and any(
        "eval_bits_per_byte" in row for row in rows
    )
    part = hub.expected[name].get(TESTED.get(name))
    check_evaluation(newllm, run, part and [turn for talk in part for turn in talk[1::2]])
    check_chat(newllm, run)
    check_cells(newllm, run, name)


def test_a_large_set_is_streamed_from_the_hub_measured_and_talks(newllm):
    run, said = trained(
        newllm, ["train", "ultrachat", *words({**TINY, **SHORT, "streaming": "on", "run_name": "streamed"})]
    )
    assert "prepared while training" in said
    check_evaluation(newllm, run, None)
    check_chat(newllm, run)


def test_records_of_ones_own_train_are_measured_and_talk(newllm):
    """The three forms that a user's JSONL may have, in one file."""
    rows = [{"messages": talk} for talk in dialogues(150)]
    rows += [
        {"prompt": talk[0]["content"], "completion": talk[1]["content"]} for talk in dialogues(150, seed=1)
    ]
    rows += instructions("context", "response", {})[0][:150]
    (newllm.folder / "mine").mkdir()
    write_jsonl(newllm.folder / "mine" / "train.jsonl", rows)
    argv = newllm(form="DIALOGUE", values={"recipe": "dolly", "data_dir": "mine"})["argv"]
    run, said = trained(newllm, argv)
    assert run.name.startswith("new_llm_dolly_mine") and "rows skipped" not in said
    check_evaluation(newllm, run, None)
    check_chat(newllm, run)
    check_cells(newllm, run, "dolly")


@pytest.mark.parametrize("model", ["new_llm", "tiny_gpt2"])
def test_the_guides_flags_and_adapters_beside_a_start(model, newllm):
    """Flag for flag, in the hyphens' spelling too; then LoRA on what came out."""
    flags = [
        "--num_layers",
        "2",
        "--max_samples",
        "80",
        "--max-seq-length",
        "32",
        "--epochs",
        "1",
        "--context-dim",
        "24",
    ]
    flags += ["--batch_size", "8", "--learning_rate", "0.01", "--patience", "3", "--model", model]
    given = {flag.lstrip("-").replace("-", "_") for flag in flags}
    small = words({k: v for k, v in {**TINY, **SHORT}.items() if k not in given})
    run, said = trained(newllm, ["train", "dolly", *small, *flags])
    label = {"new_llm": "new_llm", "tiny_gpt2": "tinygpt2"}[model]
    assert run.name.startswith(f"{label}_dolly_layers2") and run.name.endswith("_80")
    more = words({**SHORT, "max_seq_length": 32, "from": run.name, "lora_rank": 2, "model": model})
    adapted, said = trained(newllm, ["train", "hh_rlhf", "--sized_for", "cpu", *more])
    assert f"starts from {run.name}" in said and "_lora2" in adapted.name
    check_evaluation(newllm, adapted, None)
    check_chat(newllm, adapted)
