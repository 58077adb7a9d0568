"""The named dialogue sets as the hub holds them: their real files, columns and splits, from the hub to packed turns."""

import gzip
import json

import pytest

from newllm_lib.data.schemas import COLUMNS
from newllm_lib.data.sources import REGISTRY
from newllm_lib.recipe import load_recipe, shipped_recipes
from tests.data.conftest import hub_worker, paragraphs, write_jsonl
from tests.hub_server import Handler, HubServer

DIALOGUE_SETS = ("dolly", "dailydialog", "hh_rlhf", "ultrachat", "ultrachat_200k", "code_alpaca", "dolly_ja", "alpaca_ja")


def talks(count: int, seed: int) -> list[list[str]]:
    """Dialogues of two or four turns; no two are alike."""
    texts = paragraphs(4 * count, seed)
    return [texts[4 * i : 4 * i + (2 if i % 3 else 4)] for i in range(count)]


def packed(talk: list[str]) -> str:
    return "".join(f"<|{('user', 'assistant')[i % 2]}|>{turn}<|end|>" for i, turn in enumerate(talk))


def write_parquet(path, rows):
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_gzip(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def instructions(first: str, second: str, more: dict) -> tuple[list[dict], list[list[str]]]:
    """Rows of instructions, every other one with a context, and the dialogues they stand for."""
    rows, expected = [], []
    for i, (task, below, answer, *_) in enumerate(t for t in talks(600, 1) if len(t) == 4):
        rows.append({**more, "instruction": task, first: below if i % 2 else "", second: answer})
        expected.append([f"{task}\n\n{below}" if i % 2 else task, answer])
    return rows, expected


def write_dolly(place):
    rows, expected = instructions("context", "response", {"category": "open_qa"})
    write_jsonl(place / "databricks-dolly-15k.jsonl", rows)
    return {"all": expected}


def write_dailydialog(place):
    splits = {"train": talks(100, 2), "validation": talks(20, 3), "test": talks(21, 4)}
    for split, part in splits.items():
        rows = [{"dialog": [f" {t} " for t in talk], "act": [1] * len(talk), "emotion": [0] * len(talk)} for talk in part]
        write_parquet(place / "default" / split / "0000.parquet", rows)
    return splits


def write_hh_rlhf(place):
    def rows(part):
        texts = ["".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {t}" for i, t in enumerate(talk)) for talk in part]
        return [{"chosen": text, "rejected": text + " No."} for text in texts]

    train, test = talks(200, 5), talks(30, 6)
    for name, half in (("harmless-base", 0), ("helpful-base", 1)):
        write_gzip(place / name / "train.jsonl.gz", rows(train[half::2]))
        write_gzip(place / name / "test.jsonl.gz", rows(test[half::2]))
    write_gzip(place / "red-team-attempts" / "red_team_attempts.jsonl.gz", [{"transcript": "x", "rating": 1.0}])
    return {"test": test, "made of train": train}


def write_ultrachat(place):
    part = talks(300, 7)
    for shard in range(3):
        rows = [{"id": str(i), "data": talk} for i, talk in enumerate(part) if i % 3 == shard]
        write_jsonl(place / f"train_{shard}.jsonl", rows)
    return {"all": part}


def write_ultrachat_200k(place):
    def rows(part):
        as_messages = [[{"content": t, "role": ("user", "assistant")[i % 2]} for i, t in enumerate(talk)] for talk in part]
        return [{"prompt": m[0]["content"], "prompt_id": "x", "messages": m} for m in as_messages]

    splits = {"train_sft": talks(200, 8), "test_sft": talks(20, 9), "train_gen": talks(9, 10), "test_gen": talks(9, 11)}
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    for name, part in splits.items():
        write_parquet(place / f"data/{name}-00000-of-00001.parquet", rows(part))
        card += f"  - split: {name}\n    path: data/{name}-*\n"
    (place / "README.md").write_text(card + "---\n")
    return {"test": splits["test_sft"], "made of train": splits["train_sft"]}


def write_code_alpaca(place):
    rows, expected = instructions("input", "output", {})
    (place / "code_alpaca_20k.json").write_text(json.dumps(rows, indent=1))
    return {"all": expected}


def write_dolly_ja(place):
    rows, expected = instructions("input", "output", {"category": "open_qa", "index": "0"})
    (place / "databricks-dolly-15k-ja.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return {"all": expected}


def write_alpaca_ja(place):
    rows, expected = instructions("input", "output", {})
    write_parquet(place / "data/train-00000-of-00001-abc.parquet", rows)
    return {"all": expected}


class WithBranches(Handler):
    """The hub's branch of converted files: here the repository has nothing else."""

    def answer_route(self):
        if "/refs/convert/parquet" in self.route:
            self.server.hub.requests.append(f"branch {self.route}")
            self.route = self.route.replace("/refs/convert/parquet", "/main")
        super().answer_route()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    with HubServer(root) as server:
        server._server.RequestHandlerClass = WithBranches
        server.expected = {}
        for name in DIALOGUE_SETS:
            known = REGISTRY[name]
            place = root / "datasets" / known.home
            place.mkdir(parents=True)
            server.expected[name] = globals()[f"write_{name}"](place)
            if len(known.revision) == 40:
                (place / ".commit").write_text(known.revision)
        yield server


@pytest.fixture(scope="module")
def worker(hub, tmp_path_factory):
    with hub_worker(hub, tmp_path_factory) as ask:
        yield ask


@pytest.mark.parametrize("name", DIALOGUE_SETS)
def test_every_turn_of_every_dialogue_is_packed_with_its_speaker(name, hub, worker, cache):
    hub.forgive()
    answer = worker(cache, data=name, show=True)
    assert "error" not in answer, answer
    found = {split: sorted(filter(None, text.split("<|endoftext|>"))) for split, text in answer["text"].items()}
    found["all"] = sorted(sum(found.values(), []))
    found["made of train"] = sorted(found["train"] + found["validation"])
    for part, dialogues in hub.expected[name].items():
        assert found[part] == sorted(map(packed, dialogues)), part
    assert not any("skipped" in line or "no revision" in line for line in answer["said"])
    asked_for_branch = any(r.startswith("branch ") for r in hub.requests)
    assert asked_for_branch == (name == "dailydialog")


def test_answers_alone_count_if_asked(worker, cache, hub):
    everything, answers = (worker(cache, data="ultrachat", loss_on=loss_on) for loss_on in ("everything", "answers"))
    spoken = [turn for talk in hub.expected["ultrachat"]["all"] for turn in talk]
    said = [turn for talk in hub.expected["ultrachat"]["all"] for turn in talk[1::2]]
    for answer, texts in ((everything, spoken), (answers, said)):
        assert sum(answer[split][1] for split in ("train", "validation", "test")) == sum(len(t.encode()) for t in texts)
    assert everything["train"][2] == answers["train"][2] and everything["fingerprint"] != answers["fingerprint"]


@pytest.mark.parametrize("name", DIALOGUE_SETS)
@pytest.mark.parametrize("kind", ["cpu", "t4"])
def test_each_set_has_a_recipe_that_learns_its_answers(name, kind):
    recipe = load_recipe(name, device_kind=kind)
    assert recipe.data == name and recipe.loss_on == "answers" and len(shipped_recipes()[name]) > 20
    assert set(REGISTRY[name].fields) <= COLUMNS
    if kind == "cpu":
        assert recipe.hidden_size <= 128 and recipe.max_steps <= 600 and recipe.batch_size <= 32


def test_dolly_is_the_guides_run():
    recipe = load_recipe("dolly", device_kind="l4")
    assert (recipe.num_layers, recipe.max_seq_length, recipe.batch_size) == (1, 128, 2048)
    assert (recipe.scaled_learning_rate(), recipe.epochs, recipe.patience) == (8e-4, 100, 20)
    assert load_recipe("dolly", {"batch_size": 512}, device_kind="l4").scaled_learning_rate() == pytest.approx(4e-4)
    assert load_recipe("demo", device_kind="l4").loss_on == "everything"
