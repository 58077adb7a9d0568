"""Fine-tuning: a run that starts from another's weights with its tokenizer, and is never taken for one from
scratch.
"""

import json
import shutil

import pytest
import torch

from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.recipe import load_recipe
from newllm_lib.runs import Run, RunLock
from newllm_lib.training import train
from tests.helpers import tuning
from tests.helpers.loading import load_run
from tests.helpers.small_runs import curve, rows, stopped_after
from tests.helpers.tuning import SHORT, TINY, tuned, write_talks

folder = tuning.folder  # the fixture


@pytest.mark.parametrize("model", ["new_llm", "tiny_gpt2"])
def test_dailydialog_takes_the_wikitext_run_with_its_sizes_weights_and_tokenizer(folder, model, capsys):
    recipe = tuned(folder, model=model)
    name = {"new_llm": "new_llm", "tiny_gpt2": "tinygpt2"}[model]
    assert (recipe.from_run, recipe.run_name) == (f"{name}_wikitext", f"{name}_dailydialog_talks")
    run = train(recipe)
    said = capsys.readouterr().out
    assert f"starts from {name}_wikitext: its best weights" in said
    start, start_tokenizer, _ = load_run(f"{name}_wikitext")
    first = next(row for row in rows(run) if "eval_loss" in row)
    assert first["step"] == 0 and first["best"]  # the start itself, measured on the new data
    ours, tokenizer, recorded = load_run(run.path, which="last")
    assert tokenizer.get_vocab() == start_tokenizer.get_vocab() and recorded.from_run == f"{name}_wikitext"
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in start.state_dict().items()
    }
    before, after = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (start, ours))
    assert 0 < (after - before).norm() < 0.5 * before.norm()  # moved, but from there
    chosen_anew = dict.fromkeys(("dropout", "resid_pdrop", "embd_pdrop", "_name_or_path"))
    assert ours.config.to_dict() | chosen_anew == start.config.to_dict() | chosen_anew


def test_the_start_measured_first_is_what_evaluate_says_of_it(folder):
    from newllm_lib.evaluation.evaluate_run import EvaluationData, evaluate_run
    from newllm_lib.generation.chat import open_session

    run = train(tuned(folder))
    found = evaluate_run("new_llm_wikitext", EvaluationData("validation", None, folder / "talks", "answers"))
    assert rows(run)[0]["eval_bits_per_byte"] == pytest.approx(found["bits_per_byte"], rel=1e-5)
    everything = evaluate_run("new_llm_wikitext", EvaluationData("validation", None, folder / "talks"))
    assert everything["loss_on"] == "everything" and everything["bytes"] > found["bytes"]
    # Learning answers alone says nothing of who speaks first: the record says that it answers.
    assert open_session(run).dialogue and not open_session("new_llm_wikitext").dialogue


def test_names_tell_a_start_from_another_and_from_none(folder):
    shutil.copytree("checkpoints/new_llm_wikitext", "checkpoints/mine")
    asked = [
        {},
        {"from_run": "none"},
        {"from_run": "mine"},
        {"from_run": "new_llm_wikitext", "max_samples": "20"},
    ]
    assert [tuned(folder, **a).run_name for a in asked] == [
        "new_llm_dailydialog_talks",
        "new_llm_dailydialog_talks_scratch",
        "new_llm_dailydialog_talks_from-mine",
        "new_llm_dailydialog_talks_20",
    ]
    assert (
        load_recipe("dolly", {"from_run": "new_llm_wikitext"}, "cpu").run_name
        == "new_llm_dolly_from-wikitext"
    )
    assert (
        load_recipe("dolly", {"from_run": "tinygpt2_wikitext"}, "cpu").run_name
        == "tinygpt2_dolly_from-wikitext"
    )
    assert load_recipe("dolly", {"from_run": str(folder / "checkpoints/mine")}, "cpu").from_run == "mine"


def test_a_size_asked_for_that_the_start_has_not_is_an_error_that_names_it(folder):
    with pytest.raises(
        UsageError, match=r"num_layers 4 \(it has 1\), vocab_size 500 \(it has 300\).*--from none"
    ) as error:
        tuned(folder, num_layers="4", vocab_size="500", context_dim="16")
    assert "\n" not in str(error.value) and "context_dim" not in str(error.value)
    with pytest.raises(UsageError, match=r"model new_llm \(it has tiny_gpt2\)"):
        tuned(folder, model="new_llm", from_run="tinygpt2_wikitext")
    with pytest.raises(UsageError, match=r"max_seq_length 32 \(it has 16\)"):  # TinyGPT2's window is learned
        tuned(folder, model="tiny_gpt2", max_seq_length="32")
    assert tuned(folder, max_seq_length="32").max_seq_length == 32


def test_no_start_there_is_one_clear_line_and_nothing_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_talks(tmp_path)
    with pytest.raises(
        UsageError, match="a run of recipe wikitext .*`newllm train wikitext`.*--from none"
    ) as error:
        train(tuned(tmp_path))
    assert "\n" not in str(error.value) and not (tmp_path / "checkpoints").exists()
    with pytest.raises(UsageError, match="No run 'nobody'"):
        tuned(tmp_path, from_run="nobody")
    assert train(tuned(tmp_path, from_run="none", **{**TINY, **SHORT})).best.is_dir()


def test_a_start_that_is_still_trained_is_refused(folder):
    with RunLock(Run("checkpoints/new_llm_wikitext")), pytest.raises(UsageError, match="being trained now"):
        train(tuned(folder))


def test_a_fine_tuned_run_is_not_mixed_with_one_from_scratch_or_from_other_weights(folder):
    run = train(tuned(folder, output_dir="here"))
    with pytest.raises(UsageError, match="from_run: None | new_llm_wikitext"):
        train(tuned(folder, output_dir="here", from_run="none"))
    assert json.loads((run.latest_checkpoint() / "progress.json").read_text())["start_fingerprint"]
    weights = folder / "checkpoints/new_llm_wikitext/best/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UsageError, match="other weights than new_llm_wikitext has now"):
        train(tuned(folder, output_dir="here"))


def test_it_resumes_exactly_also_where_its_start_is_gone(folder, monkeypatch):
    whole = train(tuned(folder, output_dir="whole"))
    with stopped_after(3):
        train(tuned(folder))
    shutil.rmtree("checkpoints/new_llm_wikitext")
    run = train(tuned(folder))  # the same command
    assert run.name == "new_llm_dailydialog_talks"
    assert curve(run) == curve(whole)
    for a, b in zip(load_run(run)[0].parameters(), load_run(whole)[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_torn_start_is_refused(folder):
    weights = folder / "checkpoints/tinygpt2_wikitext/best/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(NewLLMError, match="not whole"):
        train(tuned(folder, from_run="tinygpt2_wikitext"))


def test_the_template_is_the_starts_unless_another_is_asked_for(folder):
    from newllm_lib.data.templates import TEMPLATES
    from newllm_lib.training.initial_model import load_initial_model, tokenizer_for

    for asked, expected in (({}, "chat"), ({"template": "instruction"}, "instruction")):
        recipe = tuned(folder, **asked)
        tokenizer = tokenizer_for(recipe, load_initial_model(recipe), None)
        assert recipe.template == expected and tokenizer.chat_template == TEMPLATES[expected]
    assert recipe.run_name == "new_llm_dailydialog_talks_instruction"


def test_packed_data_of_another_tokenizer_is_never_taken(folder):
    """The same data, packed for a tokenizer of its own and for the start's: two cache entries."""
    from newllm_lib.data import prepare
    from newllm_lib.training.initial_model import load_initial_model, tokenizer_for

    recipe = tuned(folder)
    own, given = (
        prepare(recipe),
        prepare(recipe, tokenizer=tokenizer_for(recipe, load_initial_model(recipe), None)),
    )
    assert own.fingerprint != given.fingerprint and own.train.path != given.train.path
    assert given.tokenizer.get_vocab() != own.tokenizer.get_vocab()


def test_both_models_fine_tuned_on_dialogue_are_compared(folder):
    """The guide's third step: the two that continue from WikiText, side by side on DailyDialog's held-out
    answers.
    """
    from newllm_lib.evaluation.compare.compare import compare

    ours, theirs = (train(tuned(folder, model=model)) for model in ("new_llm", "tiny_gpt2"))
    result = compare(ours, theirs, speed=False, samples=2)
    assert [m["label"] for m in result["models"]] == ["New-LLM", "TinyGPT2"]
    assert result["models"][0]["bytes"] == result["models"][1]["bytes"] > 0  # of the answers
    assert "bigram" in result["baselines"] and all(p.endswith("assistant:") for p in result["prompts"])
    assert (ours.path / "comparison.md").is_file()


def test_an_exported_folder_is_a_start_like_the_run_it_came_from(folder):
    from newllm_lib.export.folder import export

    exported = export("new_llm_wikitext", folder / "given")
    shutil.rmtree("checkpoints/new_llm_wikitext")
    run = train(tuned(folder, from_run=str(exported), output_dir="mine"))
    start, ours = load_run(exported)[0], load_run(run, "last")[0]
    before, after = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (start, ours))
    assert 0 < (after - before).norm() < 0.5 * before.norm()


def test_adapters_alone_are_no_start(folder):
    best = Run("checkpoints/new_llm_wikitext").best
    (best / "adapter_config.json").write_text("{}")
    (best / "adapter_model.safetensors").write_bytes((best / "model.safetensors").read_bytes())
    manifest = json.loads((best / "MANIFEST.json").read_text())
    manifest["files"] = {p.name: p.stat().st_size for p in best.iterdir() if p.name != "MANIFEST.json"}
    (best / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="merge them first .*newllm export new_llm_wikitext"):
        train(tuned(folder))
