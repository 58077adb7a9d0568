"""A run's second place on the hub: what is committed, whose it is, what comes back, and a hub that fails."""

from __future__ import annotations

import json
import shutil

import pytest
from huggingface_hub import constants

from newllm_lib import hub as asking
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.runs import Run, is_complete, mark_folder, restore, saved, staged_directory
from newllm_lib.runs.mirror.hub import HubMirror
from newllm_lib.runs.mirror.hub_copy import HubCopy
from newllm_lib.runs.mirror.owner import Superseded
from tests.helpers.fake_run import finished
from tests.helpers.hub_server import HubServer

TOKEN, PLACE = "hf_" + "secret" * 5, "hf://me/copies"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    with HubServer(tmp_path / "hub") as server:
        server.token = TOKEN
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(asking, "DELAYS", (0.01,))
        server.copies = server.root / "models" / "me" / "copies"
        yield server


def made(folder, *checkpoints: int) -> Run:
    run = finished(folder / "new_llm_demo")
    run.recipe_path.write_text("recipe: demo\n")
    mark_folder(run.path, "run", run.name)
    for name in ("best", *(f"checkpoint-{step}" for step in checkpoints)):
        add(run, name)
    return run


def add(run: Run, name: str, content: str = "") -> None:
    with staged_directory(run.path / name) as folder:
        (folder / "weights.json").write_text((content or f"{run.path}{name}") * 100)


def mirrored(run: Run) -> HubMirror:
    """As a session begins."""
    HubCopy(PLACE, run.name).look().claim(run)
    mirror = HubMirror(run, PLACE)
    mirror.copy()
    return mirror


def there(hub) -> set[str]:
    folder = hub.copies / "new_llm_demo"
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def commits(hub) -> int:
    return sum("/commit/" in line and line.endswith(" 200") for line in hub.requests)


def test_what_is_copied_is_private_whole_and_comes_back(hub, tmp_path):
    run = made(tmp_path / "a", 100, 200)
    mirror = mirrored(run)
    assert (hub.copies / ".private").exists() and mirror.newest_step() == 200
    assert {"recipe.yaml", "metrics.jsonl", "best/weights.json", "checkpoint-200/SUMS.json"} <= there(hub)
    assert "run.lock" not in there(hub) and not mirror.is_due()
    done = commits(hub)
    mirror.copy()
    assert commits(hub) == done  # nothing has changed
    assert saved(PLACE) == ["new_llm_demo"]
    back = restore("new_llm_demo", PLACE, tmp_path / "b")
    assert [p.name for p in back.checkpoints()] == ["checkpoint-100", "checkpoint-200"]
    assert (back.best / "weights.json").read_bytes() == (run.best / "weights.json").read_bytes()
    assert is_complete(back.last) and not list((tmp_path / "b").glob(".*from_hub"))
    with pytest.raises(UsageError, match="is here already"):
        restore("new_llm_demo", PLACE, tmp_path / "b")
    with pytest.raises(UsageError, match="no run 'other' in hf://me/copies"):
        restore("other", PLACE, tmp_path / "b")


def test_one_commit_brings_the_new_and_takes_the_old(hub, tmp_path):
    run = made(tmp_path / "a", 100)
    mirror = mirrored(run)
    before = commits(hub)
    add(run, "checkpoint-200")
    add(run, "best", "better")
    shutil.rmtree(run.path / "checkpoint-100")
    assert mirror.is_due()
    mirror.copy()
    assert commits(hub) == before + 1 and mirror.newest_step() == 200
    assert not any(name.startswith("checkpoint-100") for name in there(hub))
    assert "better" in (hub.copies / "new_llm_demo" / "best" / "weights.json").read_text()


def test_a_damaged_download_is_not_brought_back(hub, tmp_path):
    mirrored(made(tmp_path / "a", 100))
    damaged = hub.copies / "new_llm_demo" / "checkpoint-100" / "weights.json"
    damaged.write_bytes(damaged.read_bytes()[::-1])
    with pytest.raises(NewLLMError, match="No checkpoint in .* is undamaged"):
        restore("new_llm_demo", PLACE, tmp_path / "b")


@pytest.mark.parametrize("fault", [429, 500, 503, "reset"])
def test_a_failing_hub_is_one_line_and_what_it_missed_is_caught_up(hub, tmp_path, fault):
    run = made(tmp_path / "a", 100)
    mirror = mirrored(run)
    add(run, "checkpoint-200")
    hub.fail("POST .*commit", fault, 50)
    with pytest.raises(NewLLMError, match="the copy of step 100 there is whole") as caught:
        mirror.copy()
    assert TOKEN not in str(caught.value) and "\n" not in str(caught.value) and mirror.is_due()
    hub.forgive()
    mirror.copy()
    assert mirror.newest_step() == 200


def test_a_hub_that_is_away_at_the_start_is_claimed_later(hub, tmp_path):
    run = made(tmp_path / "a", 100)
    hub.fail(".*", 503, 50)
    with pytest.raises(Exception, match="503"):
        HubCopy(PLACE, run.name).look().claim(run)
    hub.forgive()
    mirror = HubMirror(run, PLACE)
    mirror.copy()
    assert mirror.newest_step() == 100


def test_a_refused_token_says_so_and_no_token_is_a_usage_error(hub, tmp_path, monkeypatch):
    run = made(tmp_path / "a", 100)
    mirror = mirrored(run)
    add(run, "checkpoint-200")
    hub.token = "another"
    with pytest.raises(NewLLMError, match="refuses hf://me/copies/new_llm_demo .401.*write access"):
        mirror.copy()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UsageError, match="needs a token with write access"):
        HubCopy(PLACE, "x")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(UsageError, match="hf://OWNER/NAME"):
        HubCopy("hf://me", "x")


def test_the_session_that_started_last_has_the_copy(hub, tmp_path):
    first = made(tmp_path / "a", 100)
    mirror = mirrored(first)
    second = restore("new_llm_demo", PLACE, tmp_path / "b")
    add(second, "checkpoint-200")
    other = mirrored(second)
    add(first, "checkpoint-150")
    with pytest.raises(Superseded, match="is written by another session now"):
        mirror.copy()
    assert other.newest_step() == 200
    assert "written by" not in HubCopy(PLACE, second.name).look().claim(second)  # it is ours still


def test_another_sessions_copy_is_replaced_when_ours_can_be_continued(hub, tmp_path):
    mirrored(made(tmp_path / "a", 300))
    fresh = made(tmp_path / "b")
    copy = HubCopy(PLACE, fresh.name).look()
    assert "since" in copy.claim(fresh)
    mirror = HubMirror(fresh, PLACE)
    mirror.copy()
    assert mirror.newest_step() == 300  # nothing of ours could be continued
    add(fresh, "checkpoint-10")
    mirror.copy()
    assert mirror.newest_step() == 10 and not any(n.startswith("checkpoint-300") for n in there(hub))
    mark = json.loads((hub.copies / "new_llm_demo" / ".newllm.json").read_text())
    assert mark["owner"]["path"] == str(fresh.path)


def test_a_run_is_mirrored_while_it_trains_and_continued_on_a_new_machine(hub, tmp_path, monkeypatch, capfd):
    from newllm_lib.training import train
    from tests.helpers.small_runs import losses, recipe, stopped_after, write_text

    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    write_text(tmp_path)
    (tmp_path / "second").mkdir()
    (tmp_path / "first").mkdir()
    first, second = tmp_path / "first" / "small", tmp_path / "second" / "small"

    def small(folder, steps: int):
        return recipe(tmp_path, mirror_dir=PLACE, output_dir=str(folder), max_steps=steps)

    hub.fail("POST .*commit", 503, 1)  # the first commit of this process
    with stopped_after(9):
        train(small(first, 15))
    assert f"small is copied to {PLACE} (step 10)" in capfd.readouterr().out
    with pytest.raises(UsageError, match="hf://me/copies/small holds a run with another recipe.*small_2"):
        train(small(second, 16))
    again = train(small(second, 15))
    assert "further than here: it is brought back and continued" in capfd.readouterr().out
    known = losses(Run(first))
    assert losses(again)[: len(known)] == known != []  # one run, not two
    assert again.latest_checkpoint().name == "checkpoint-15"
    assert HubCopy(PLACE, "small").look().latest_checkpoint().name == "checkpoint-15"
    everything = "".join(p.read_text(errors="replace") for p in again.path.rglob("*") if p.is_file())
    assert TOKEN not in everything
