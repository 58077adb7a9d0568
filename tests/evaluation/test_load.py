"""A run is loaded from its folder alone, and what is not whole is refused by name."""

import json
import pickle

import pytest
import torch

from newllm_lib.cli import main
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.recipe import load_recipe
from newllm_lib.runs import Run, staged_directory
from tests.helpers.loading import load_run


@pytest.fixture
def run(make_run, bpe, tmp_path):
    return make_run(tmp_path / "checkpoints" / "new_llm_small", bpe)


def one_line(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    return text


def test_a_run_by_every_name(run, bpe, monkeypatch):
    monkeypatch.chdir(run.path.parent.parent)
    expected = torch.load  # never called: only safetensors are read
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("a pickle was read"))
    for name in (
        run,
        run.path,
        str(run.path),
        "new_llm_small",
        run.best,
        run.last,
        str(run.path / "checkpoint-7"),
    ):
        model, tokenizer, recipe = load_run(name)
        assert (
            tokenizer.get_vocab() == bpe.get_vocab() and recipe.hidden_size == model.config.hidden_size == 16
        )
        assert not model.training and model.dtype == torch.float32
    assert load_run(run, "checkpoint-7")[0].config.model_type == "new_llm" and expected is not torch.load


def test_the_baseline_and_a_plain_folder_load_too(make_run, make_model, bpe, tmp_path):
    run = make_run(tmp_path / "tiny", bpe, "tiny_gpt2", names=("best",))
    assert load_run(run)[0].config.model_type == "tiny_gpt2"
    plain = tmp_path / "plain"
    make_model(bpe).save_pretrained(plain)
    with pytest.raises(NewLLMError, match="tokenizer_config.json"):
        load_run(plain)
    bpe.save_pretrained(plain)
    assert load_run(plain)[2] is None


@pytest.mark.parametrize(
    "name,harm",
    [
        (name, harm)
        for name in ("model.safetensors", "config.json", "tokenizer.json", "MANIFEST.json")
        for harm in ("remove", "truncate", "grow")
        if (name, harm) != ("MANIFEST.json", "grow")
    ],
)
def test_a_damaged_file_is_named(run, name, harm):
    file = run.best / name
    if harm == "remove":
        file.unlink()
    elif harm == "truncate":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(NewLLMError) as error:
        load_run(run)
    line = one_line(error)
    assert name in line and str(run.best) in line and "Copy it again" in line and str(run.last) in line


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_damage_that_keeps_the_size_is_one_line_too(run, name):
    file = run.best / name
    file.write_bytes(b"\x00\xff" * (file.stat().st_size // 2) + b"\x00" * (file.stat().st_size % 2))
    with pytest.raises(NewLLMError) as error:
        load_run(run)
    assert str(run.best) in one_line(error)


def test_weights_that_are_missing_in_the_file_are_not_made_up(run, bpe):
    from safetensors.torch import load_file, save_file

    from newllm_lib.runs import staged_directory

    weights = load_file(run.best / "model.safetensors")
    weights.pop(next(name for name in weights if "mlp" in name))
    with staged_directory(run.path / "checkpoint-9") as staging:
        for file in run.best.iterdir():
            if file.name != "MANIFEST.json":
                (staging / file.name).write_bytes(file.read_bytes())
        save_file(weights, staging / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NewLLMError, match="holds no weights for model.layers.0.mlp"):
        load_run(run, "checkpoint-9")


def test_a_pickle_is_never_read(run):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    folder = run.path.parent / "foreign"
    folder.mkdir()
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((run.best / file).read_bytes())
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(NewLLMError, match="model.safetensors"):
        load_run(folder)


def test_a_tokenizer_of_another_run_is_refused(run, bpe, tmp_path):
    from newllm_lib.data.tokenizer import train_bpe, wrap

    manifest = json.loads((run.best / "MANIFEST.json").read_text())
    larger = wrap(train_bpe(iter([["some quite different text with other words in it"] * 3]), 270 + 80))
    larger.add_tokens(["more"] + [f"x{i}" for i in range(100)])
    larger.save_pretrained(run.best)
    manifest["files"] = {n: (run.best / n).stat().st_size for n in manifest["files"]}
    (run.best / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(NewLLMError, match="do not belong together"):
        load_run(run)


def test_what_is_not_there_is_a_usage_error(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, which, words in (
        ("new_llm_smal", "best", "did you mean new_llm_small"),
        (run, "checkpoint-8", "it has best, checkpoint-7, last"),
        (run, "worst", "no 'worst'"),
        (run.path / "checkpoint-8", "best", "it has best, checkpoint-7, last"),
    ):
        with pytest.raises(UsageError) as error:
            load_run(name, which)
        assert words in one_line(error)
    empty = Run(tmp_path / "empty")
    empty.path.mkdir()
    empty.recipe_path.write_bytes(run.recipe_path.read_bytes())
    with pytest.raises(UsageError, match="nothing was saved there yet"):
        load_run(empty)


@pytest.mark.parametrize(
    "words",
    [
        "evaluate old",
        "evaluate checkpoints/old/best",
        "chat old",
        "compare old old",
        "export old",
        "expand old --context_dim 32",
        "train dpo --base old",
        "train demo --from old",
        "train demo --run_name old",
    ],
)
def test_every_command_says_that_the_memory_of_words_is_gone(
    words, make_model, bpe, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEWLLM_DEVICE", "cpu")
    run, model = Run(tmp_path / "checkpoints" / "old"), make_model(bpe)
    model.config.word_memory = 100.0  # as 0.1.0 saved it
    with staged_directory(run.best) as staging:
        model.save_pretrained(staging)
        bpe.save_pretrained(staging)
    record = load_recipe("demo", {"run_name": "old"}).to_yaml()
    run.recipe_path.write_text(record[record.index("recipe: ") :] + "word_memory: 100.0\n")
    capsys.readouterr()  # transformers' progress bar of saving
    assert main(words.split()) in (1, 2)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "memory of words" in said and "commit 6e07e55" in said
