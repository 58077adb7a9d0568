"""The named dialogue sets as the hub holds them: from the hub to packed turns."""

import pytest

from newllm_lib.data.datasets import REGISTRY
from newllm_lib.data.schemas import SCHEMAS
from newllm_lib.recipe import load_recipe, shipped_recipes
from tests.helpers.dialogue_sets import DIALOGUE_SETS, dialogue_hub, packed
from tests.helpers.hub_process import hub_worker


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with dialogue_hub(tmp_path_factory.mktemp("hub")) as server:
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
    found = {
        split: sorted(filter(None, text.split("<|endoftext|>"))) for split, text in answer["text"].items()
    }
    found["all"] = sorted(sum(found.values(), []))
    found["made of train"] = sorted(found["train"] + found["validation"])
    for part, dialogues in hub.expected[name].items():
        assert found[part] == sorted(map(packed, dialogues)), part
    assert not any("skipped" in line or "no revision" in line for line in answer["said"])
    asked_for_branch = any(r.startswith("branch ") for r in hub.requests)
    assert asked_for_branch == (name == "dailydialog")


def test_answers_alone_count_if_asked(worker, cache, hub):
    everything, answers = (
        worker(cache, data="ultrachat", loss_on=loss_on) for loss_on in ("everything", "answers")
    )
    spoken = [turn for talk in hub.expected["ultrachat"]["all"] for turn in talk]
    said = [turn for talk in hub.expected["ultrachat"]["all"] for turn in talk[1::2]]
    for answer, texts in ((everything, spoken), (answers, said)):
        assert sum(answer[split][1] for split in ("train", "validation", "test")) == sum(
            len(t.encode()) for t in texts
        )
    assert (
        everything["train"][2] == answers["train"][2] and everything["fingerprint"] != answers["fingerprint"]
    )


@pytest.mark.parametrize("name", DIALOGUE_SETS)
@pytest.mark.parametrize("kind", ["cpu", "t4"])
def test_each_set_has_a_recipe_that_learns_its_answers(name, kind):
    recipe = load_recipe(name, device_kind=kind)
    assert recipe.data == name and recipe.loss_on == "answers" and len(shipped_recipes()[name]) > 20
    assert REGISTRY[name].schema in SCHEMAS
    if kind == "cpu":
        assert recipe.hidden_size <= 128 and recipe.max_steps <= 600 and recipe.batch_size <= 32


def test_dolly_is_the_guides_run():
    recipe = load_recipe("dolly", device_kind="l4")
    assert (recipe.num_layers, recipe.max_seq_length, recipe.batch_size) == (1, 128, 2048)
    assert (recipe.scaled_learning_rate(), recipe.epochs, recipe.patience) == (8e-4, 100, 20)
    assert load_recipe(
        "dolly", {"batch_size": 512}, device_kind="l4"
    ).scaled_learning_rate() == pytest.approx(4e-4)
    assert load_recipe("demo", device_kind="l4").loss_on == "everything"
