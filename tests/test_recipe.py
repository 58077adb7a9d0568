"""The recipe: one dataclass for YAML, flags, forms and the record; unknown keys named; every key has an
effect.
"""

from dataclasses import asdict, fields
from types import SimpleNamespace

import pytest
import torch

from newllm_lib.device import probe
from newllm_lib.errors import UsageError
from newllm_lib.recipe import GUIDES_KEYS, Recipe, load_recipe, shipped_recipes


def recipe(**overrides):
    return load_recipe("demo", {"sized_for": "h100", **overrides})


@pytest.mark.parametrize("name", shipped_recipes())
@pytest.mark.parametrize("kind", ["cpu", "t4", "h100"])
@pytest.mark.parametrize("model", ["new_llm", "tiny_gpt2", "phase7"])
def test_shipped_recipes_load_for_every_device_and_survive_their_own_yaml(name, kind, model, tmp_path):
    loaded = load_recipe(name, {"model": model}, device_kind=kind)
    (tmp_path / "recipe.yaml").write_text(loaded.to_yaml())
    again = Recipe.from_yaml(tmp_path / "recipe.yaml")
    assert again == loaded and not again.differences(loaded)
    assert loaded.recipe == name and loaded.sized_for == kind


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"batchsize": 3}, ["batchsize", "batch_size"]),
        ({"lerning_rate": 1}, ["learning_rate"]),
        ({"batch_size": "many"}, ["batch_size", "a whole number"]),
        ({"batch_size": 0}, ["batch_size", "at least 1"]),
        ({"learning_rate": float("nan")}, ["learning_rate", "finite"]),
        ({"model": "gpt5"}, ["new_llm", "tiny_gpt2"]),
        ({"micro_batch_size": "some"}, ["micro_batch_size", "a whole number or auto"]),
        ({"carry_state": 3}, ["carry_state", "true or false"]),
    ],
)
def test_a_wrong_key_or_value_is_one_line_that_helps(overrides, words):
    with pytest.raises(UsageError) as error:
        recipe(**overrides)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean wikitext"):
        load_recipe("wikitex")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lerning_rate: 1\n", "learning_rate"),
        ("a: [\n", "YAML"),
        ("- 1\n", "key: value"),
        ("when: {moon: {epochs: 1}}\n", "moon"),
        ("when: {cpu: {epoch: 1}}\n", "epochs"),
    ],
)
def test_a_wrong_yaml_file_is_one_line_with_its_name(text, words, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        load_recipe(str(path), device_kind="cpu")
    assert words in str(error.value) and "mine.yaml" in str(error.value) and "\n" not in str(error.value)


def test_values_as_text_from_a_command_line_or_a_form_are_understood():
    words = {
        "learning_rate": "8e-4",
        "max_samples": "100,000",
        "patience": "none",
        "carry_state": "false",
        "epochs": "2",
    }
    loaded = recipe(compile="on", **words)
    assert (loaded.learning_rate, loaded.max_samples, loaded.patience) == (8e-4, 100_000, None)
    assert (loaded.carry_state, loaded.compile, loaded.epochs) == (False, "on", 2.0)


def test_conditions_apply_by_device_and_model_and_flags_win(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("num_layers: 6\nwhen:\n  cpu: {num_layers: 1}\n  tiny_gpt2: {learning_rate: 0.001}\n")
    assert load_recipe(str(path), device_kind="h100").num_layers == 6
    assert load_recipe(str(path), device_kind="cpu").num_layers == 1
    assert load_recipe(str(path), {"num_layers": 3}, device_kind="cpu").num_layers == 3
    assert load_recipe(str(path), {"sized_for": "cpu"}, device_kind="h100").num_layers == 1
    assert load_recipe(str(path), {"model": "tiny_gpt2"}, device_kind="h100").learning_rate == 0.001


def test_run_names_are_the_owners_and_say_what_changes_the_data():
    assert recipe().run_name == "new_llm_demo"
    assert load_recipe("wikitext", {"model": "tiny_gpt2"}, device_kind="h100").run_name == "tinygpt2_wikitext"
    assert recipe(num_layers=6, max_samples=100_000).run_name == "new_llm_demo_layers6_100k"
    assert (
        recipe(recurrence="sequential", protocol="seed").run_name == "new_llm_demo_sequential_protocol-seed"
    )
    assert recipe(data_dir="/some/where/poems").run_name == "new_llm_demo_poems"
    different = [
        {},
        {"max_samples": 5},
        {"max_seq_length": 256},
        {"context_dim": 512},
        {"seed": 1},
        {"vocab_size": 8192},
    ]
    assert len({recipe(**d).run_name for d in different}) == len(different)


def test_batch_size_scales_the_learning_rate_by_its_square_root_and_a_given_rate_is_meant_as_given():
    base = recipe()
    assert recipe(batch_size=4 * base.batch_size).scaled_learning_rate() == pytest.approx(
        2 * base.learning_rate
    )
    assert recipe(batch_size=4 * base.batch_size, learning_rate=1e-3).scaled_learning_rate() == pytest.approx(
        1e-3
    )
    guide = recipe(learning_rate=8e-4, learning_rate_batch_size=2048, batch_size=1024)
    assert guide.scaled_learning_rate() == pytest.approx(8e-4 / 2**0.5)


# --- the Phase 7 guide's names
# -----------------------------------------------------------------------------------------

GUIDE = """
model: phase7
d_model: 64
n_layers: 3
n_seq: 32
batch_size: 1
gradient_accumulation_steps: 16
learning_rate: 0.0003
epochs: 10
use_mixed_precision: false
use_gradient_checkpointing: true
use_flash_attention: false
use_fused_optimizer: false
use_compile: false
"""


def test_the_guides_yaml_is_read_key_by_key_and_recorded_in_our_words(tmp_path):
    path = tmp_path / "guide.yaml"
    path.write_text(GUIDE)
    loaded = load_recipe(str(path), device_kind="h100")
    assert (loaded.hidden_size, loaded.num_layers, loaded.max_seq_length) == (64, 3, 32)
    assert (loaded.micro_batch_size, loaded.batch_size, loaded.learning_rate, loaded.epochs) == (
        1,
        16,
        3e-4,
        10,
    )
    assert (loaded.dtype, loaded.gradient_checkpointing, loaded.flash_attention) == ("fp32", "on", False)
    assert (loaded.fused_optimizer, loaded.compile) == (False, "off")
    assert Recipe.from_yaml(write(tmp_path / "record.yaml", loaded.to_yaml())) == loaded
    assert "d_model" not in loaded.to_yaml()


def write(path, words):
    path.write_text(words)
    return path


@pytest.mark.parametrize("name", GUIDES_KEYS)
def test_each_of_the_guides_names_changes_the_recipe(name):
    one, other = (
        {"d_model": 64, "n_layers": 3, "n_heads": 2, "n_seq": 32}.get(name, v) for v in ("true", "false")
    )
    if name == "gradient_accumulation_steps":
        one, other = 2, 4
    elif one == other:
        other = 2 * one
    beside = {"batch_size": 4} if name == "gradient_accumulation_steps" else {}
    assert asdict(recipe(**{name: one}, **beside)) != asdict(recipe(**{name: other}, **beside))


def test_the_command_line_overrides_a_guides_yaml(tmp_path):
    path = write(tmp_path / "guide.yaml", GUIDE)
    asked = {"gradient_accumulation_steps": "4", "d_model": "32", "use_compile": "true"}
    loaded = load_recipe(str(path), asked, device_kind="h100")
    assert (loaded.micro_batch_size, loaded.batch_size, loaded.hidden_size, loaded.compile) == (
        1,
        4,
        32,
        "auto",
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"d_model": 8, "hidden_size": 8}, "one key"),
        ({"use_compile": "perhaps"}, "true or false"),
        ({"gradient_accumulation_steps": 4}, "batch_size"),
        ({"gradient_accumulation_steps": 0, "batch_size": 1}, "whole number"),
        ({"gradient_accumulation_steps": 4, "batch_size": 1, "micro_batch_size": 1}, "leave one out"),
        ({"use_compil": True}, "Unknown key"),
    ],
)
def test_a_guides_name_used_wrongly_is_one_line(values, words):
    with pytest.raises(UsageError, match=words):
        recipe(**values)


# --- every key has an effect
# ------------------------------------------------------------------------------------------

MODEL_KEYS = {  # another value of the key, and what must be set beside it for the key to count
    "model": ("tiny_gpt2", {}),
    "recurrence": ("sequential", {}),
    "num_layers": (2, {}),
    "hidden_size": (64, {}),
    "context_dim": (64, {}),
    "mlp_size": (64, {}),
    "num_heads": (8, {"model": "tiny_gpt2"}),
    "dropout": (0.3, {}),
    "max_seq_length": (64, {"model": "tiny_gpt2"}),
    "match": ("phase7", {"model": "tiny_gpt2"}),
    **{
        key: (value, {"model": "phase7"})
        for key, value in {
            "attention": "dot",
            "attention_window": 7,
            "flash_attention": False,
            "ar_ssm": False,
            "ssm_ranks": 8,
            "embedding": "dense",
            "htt_rank": 5,
        }.items()
    },
}


@pytest.mark.parametrize("key", MODEL_KEYS)
def test_each_model_key_changes_the_model(key):
    from newllm_lib.training.model_config import model_config

    value, beside = MODEL_KEYS[key]
    one, other = (model_config(recipe(**chosen), 500) for chosen in (beside, {**beside, key: value}))
    assert one.to_diff_dict() != other.to_diff_dict()


OPTIMISER_KEYS = {
    "learning_rate": 1e-3,
    "learning_rate_batch_size": 32,
    "batch_size": 256,
    "warmup_steps": 10,
    "schedule": "linear",
    "min_learning_rate_ratio": 0.5,
    "weight_decay": 0.01,
    "adam_beta2": 0.999,
    "optimizer": "adamw",
}


def _course(r: Recipe):
    """What the optimizer and its schedule do in 100 steps, as numbers."""
    from newllm_lib.training.optim.build import build_optimizer, build_scheduler

    optimizer = build_optimizer(torch.nn.Sequential(torch.nn.Linear(3, 3)), r)
    scheduler, rates = build_scheduler(optimizer, 400, r), []
    for _ in range(300):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates, [(g["weight_decay"], g.get("betas"), g["lr"]) for g in optimizer.param_groups]


@pytest.mark.parametrize("key", OPTIMISER_KEYS)
def test_each_optimiser_key_changes_the_steps(key):
    base = recipe()
    assert _course(base) != _course(recipe(**{key: OPTIMISER_KEYS[key]}))


def test_muons_learning_rate_is_its_own():
    assert _course(recipe(optimizer="muon")) != _course(recipe(optimizer="muon", muon_learning_rate=0.01))


def test_a_package_to_report_to_that_is_not_installed_is_one_line(monkeypatch):
    from newllm_lib.training.log import refuse_trackers

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refuse_trackers(recipe())
    with pytest.raises(UsageError, match="--report_to wandb needs a package: `pip install wandb`"):
        refuse_trackers(recipe(report_to="wandb"))


def test_dtype_and_compile_follow_the_recipe_or_the_probe(monkeypatch):
    from newllm_lib.training.compile import compilation, dtype_of

    device = probe()
    assert dtype_of(recipe(), device) == device.dtype
    for kind, refused in (("cpu", "fp16"), ("cpu", "bf16"), ("t4", "bf16")):
        monkeypatch.setenv("NEWLLM_DEVICE", kind)
        with pytest.raises(UsageError, match=f"--dtype {refused}"):
            dtype_of(recipe(dtype=refused), probe())
    monkeypatch.setenv("NEWLLM_DEVICE", "a100")
    assert [dtype_of(recipe(dtype=d), probe()) for d in ("fp32", "fp16", "bf16")] == ["fp32", "fp16", "bf16"]
    found = [compilation(recipe(compile=c), device) for c in ("on", "off", "graphs")]
    assert found == ["on", "off", "graphs"]
    for kind, expected in (("cpu", "off"), ("t4", "replay"), ("h100", "replay")):
        monkeypatch.setenv("NEWLLM_DEVICE", kind)
        assert compilation(recipe(), probe()) == expected
    assert recipe(compile=True).compile == "on"  # YAML 1.1 reads on and off as booleans


def test_micro_batch_divides_the_batch_and_fits(monkeypatch):
    from newllm_lib.training.estimate import estimate, micro_batch_size

    monkeypatch.setenv("NEWLLM_DEVICE", "t4")
    device = probe()
    assert micro_batch_size(recipe(micro_batch_size=48), device) == 32  # the largest divisor of 128 below it
    large = recipe(max_seq_length=4096, hidden_size=1024, mlp_size=4096, batch_size=2048)
    assert estimate(large, device)["memory_estimate_gib"] < device.memory_gib
    assert micro_batch_size(large, device) < 2048


def test_the_memory_keys_lower_the_estimate(monkeypatch):
    from newllm_lib.training.estimate import estimate

    monkeypatch.setenv("NEWLLM_DEVICE", "h100")
    sizes = {"hidden_size": 2048, "context_dim": 2048, "mlp_size": 8192, "num_layers": 16, "batch_size": 16}
    sizes["max_seq_length"] = 1024
    keys = {
        "gradient_checkpointing": "on",
        "weights_dtype": "bf16",
        "optimizer": "adafactor",
        "optimizer_in_backward": True,
    }
    chosen, needed = {}, []
    for key, value in [
        ("micro_batch_size", 4),
        *keys.items(),
        ("gradient_checkpointing", "offload"),
        ("momentum_bits", 0),
    ]:
        chosen[key] = value
        needed.append(estimate(recipe(**sizes, **chosen), probe())["memory_estimate_gib"])
    assert needed == sorted(needed, reverse=True) and needed[-1] < 0.4 * needed[0]


def test_the_timetable_keys_decide_when_to_log_evaluate_and_save():
    from newllm_lib.training.signals import Flags
    from newllm_lib.training.timetable import Timetable

    def days(**changes):
        table = Timetable(recipe(**changes), steps_per_epoch=100, total_steps=200)
        table.last_save -= 120  # two minutes ago
        flags = Flags(SimpleNamespace(received=None), table, SimpleNamespace(taken=lambda: False))
        seen = []
        for step in range(1, 201):
            decision = table.after(step)
            flags.heed(decision)
            seen.append((decision.log, decision.evaluate, decision.save))
            assert decision.stop == (step == 200)
        return seen

    base = days()
    assert sum(e for _, e, _ in base) == 2 and base[-1] == (True, True, True)
    assert sum(e for _, e, _ in days(evals_per_epoch=4)) == 8
    assert sum(log for log, _, _ in days(logging_steps=10)) == 21
    assert sum(s for _, _, s in base) == 2 and sum(s for _, _, s in days(save_minutes=1)) == 200
    assert [i + 1 for i, (_, _, s) in enumerate(days(save_steps=80)) if s] == [80, 100, 160, 200]


def test_how_often_is_evaluated_follows_from_recipe_and_data_alone():
    from newllm_lib.training.progress import Progress
    from newllm_lib.training.timetable import Timetable

    def evaluations(per_epoch, total, evaluated, **changes):
        table = Timetable(recipe(evals_per_epoch="auto", **changes), per_epoch, total, evaluated)
        return table, [step for step in range(1, total + 1) if table.evaluates_at(step)]

    on_cpu = {"sized_for": "cpu", "batch_size": 32, "max_seq_length": 64}  # 2,048 tokens a step
    # a twentieth as much text as is trained on: 20 x 20,480 tokens are 200 steps
    assert evaluations(1000, 1000, 20_480, **on_cpu)[1] == [200, 400, 600, 800, 1000]
    assert evaluations(150, 600, 20_480, **on_cpu)[1] == [300, 600]  # every second epoch
    # never more often than a machine needs for samples and saves, nor than 20 times in an epoch
    assert evaluations(100, 400, 300, **on_cpu)[1] == [200, 400]
    assert len(evaluations(100_000, 100_000, 300, **on_cpu)[1]) == 20
    on_gpu = {"sized_for": "h100", "batch_size": 64, "max_seq_length": 512}  # 32,768 tokens a step
    table, steps = evaluations(25, 999, 40_000, **on_gpu, patience=10)  # a text of one megabyte
    assert steps == [150, 300, 450, 600, 750, 900, 999]
    assert evaluations(25, 100, 4_000, **on_gpu)[1] == [50, 100]  # a short run: on its way too
    progress = Progress()
    for step, score in ((150, 2.0), (300, 1.9), (450, 1.95)):
        progress.judge(score, step)
    assert table.hopeless(progress, 525) is None  # nine epochs after the best, in epochs
    assert table.hopeless(progress, 550) == "10 epochs"
    often, _ = evaluations(1000, 1000, 20_480, **on_cpu, patience=2)
    progress.judge(1.96, 600)
    assert often.hopeless(progress, 600) == "2 evaluations"
    assert evaluations(10, 30, None)[1] == [10, 20, 30]


ELSEWHERE = {
    "task",
    "base",
    "beta",
    "loss_type",
    "load_in",
    "packing",
    "neftune_alpha",
    "reward",  # tests/training/test_grpo.py
    "num_generations",
    "max_completion_length",
    "sft_warm_start",
    "sft_learning_rate",  # tests/training
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "eval_pairs",  # tests/training, tests/data/preferences
    "recipe",
    "sized_for",
    "run_name",
    "output_dir",
    "resume",  # names and places: tests of names above, of runs in training/
    "data",
    "data_dir",
    "encoding",
    "documents",
    "max_samples",
    "streaming",
    "template",
    "protocol",
    "tokenizer",
    "vocab_size",
    "loss_on",  # tests/data
    "epochs",
    "max_steps",
    "patience",
    "evals_per_epoch",
    "eval_tokens",
    "keep_checkpoints",
    "logging_steps",
    "save_minutes",  # tests/training
    "save_steps",  # above
    "carry_state",  # tests/training
    "sample_tokens",  # tests/training/test_samples.py
    "curvature_schedule",  # tests/training/test_curvature.py
    "gradient_checkpointing",
    "fused_optimizer",
    "kernels",  # tests/training/test_phase7_training.py
    "weights_dtype",
    "momentum_bits",
    "optimizer_in_backward",
    "log_style",
    "deterministic",  # tests/training/memory
    "from_run",  # tests/training/test_start.py
    "teacher",
    "distill_weight",  # tests/training/test_distill.py
    "time_scales",  # tests/models/test_expansion.py
    "mirror_dir",
    "force",  # tests/training/test_mirror_callbacks.py
    "num_gpus",
    "distribution",  # tests/training/test_distributed.py
    "muon_learning_rate",
    "seed",
    "max_grad_norm",
    "report_to",
    "dtype",
    "compile",
    "micro_batch_size",  # the functions above
}


def test_no_key_is_without_a_test_of_its_effect():
    assert {f.name for f in fields(Recipe)} == ELSEWHERE | set(MODEL_KEYS) | set(OPTIMISER_KEYS)


@pytest.mark.parametrize("kind", ["cpu", "t4", "h100"])
def test_the_recipe_for_a_text_of_ones_own_goes_by_its_size(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("x" * 5000)
    (tmp_path / "shelf").mkdir()
    for number in range(3):
        (tmp_path / "shelf" / f"{number}.txt").write_text("x" * 400_000)
    with open(tmp_path / "dump.txt", "wb") as file:
        file.truncate(30_000_000)
    small, medium, large = (load_recipe("text", {"data": d}, kind) for d in ("book.txt", "shelf", "dump.txt"))
    assert small.vocab_size < medium.vocab_size < large.vocab_size
    assert small.epochs > medium.epochs > large.epochs
    assert small.data == str(tmp_path / "book.txt") and small.run_name == "new_llm_text_book"
    assert small.documents == "file" and small.carry_state
    assert kind == "cpu" or small.hidden_size < medium.hidden_size < large.hidden_size
