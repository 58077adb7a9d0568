"""Data prepared while training, from a server that speaks the hub's protocol and fails in every way."""

import json
import shutil

import pytest

from newllm_lib.data.splits import split_of
from tests.helpers.hub_process import hub_worker
from tests.helpers.hub_server import Handler, HubServer
from tests.helpers.texts import dialogues, paragraphs, write_jsonl

SET, NAME = "datasets/me/talks", "me/talks"


class Remembering(Handler):
    """As the hub: an old commit can still be read after the branch has moved."""

    def answer_route(self):
        if self.server.hub.old_commit and self.server.hub.old_commit in self.route:
            self.route = self.route.replace(f"{NAME}/", f"{NAME}_before/")
        super().answer_route()


def talks():
    return [[m["content"] for m in talk] for seed in range(3) for talk in dialogues(300, seed=seed)]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    for shard in range(3):
        (root / SET).mkdir(parents=True, exist_ok=True)
        write_jsonl(
            root / SET / f"train_{shard}.jsonl",
            [{"id": str(i), "data": t} for i, t in enumerate(talks()[shard::3])],
        )
    odd = root / "datasets/me/odd"
    odd.mkdir()
    write_jsonl(odd / "train.jsonl", [{"question": t} for t in paragraphs(300)])
    late = root / "datasets/me/late"
    late.mkdir()
    lines = [json.dumps({"data": t}) for t in talks()]
    (late / "train.jsonl").write_text(
        "\n".join(line if i < 100 else "{" * len(line) for i, line in enumerate(lines))
    )
    with HubServer(root) as server:
        server._server.RequestHandlerClass = Remembering
        server.old_commit = None
        yield server


@pytest.fixture(scope="module")
def worker(hub, tmp_path_factory):
    with hub_worker(hub, tmp_path_factory) as ask:
        yield lambda cache, data=NAME, **fields: ask(cache, data=data, streaming="on", **fields)


@pytest.fixture(scope="module")
def whole(worker, tmp_path_factory):
    """The answer without any fault, and a cache that holds the tokenizer and the held-out splits, but no
    segment.
    """
    cache = tmp_path_factory.mktemp("cache")
    answer = worker(cache)
    assert "error" not in answer, answer
    shutil.rmtree(cache / "streams")
    return answer, cache


@pytest.fixture
def begun(whole, tmp_path, hub):
    """A cache of one's own with that content: what is read now is read by the processes that pack."""
    hub.forgive()
    shutil.copytree(whole[1], tmp_path / "begun")
    yield tmp_path / "begun"
    hub.forgive()


def one_line(answer, *words):
    assert "\n" not in answer["error"] and all(word in answer["error"] for word in words), answer["error"]


def test_the_whole_set_arrives(whole):
    from newllm_lib.data.schemas import parse_row

    digests = [parse_row({"data": talk}).digest() for talk in talks()]
    assert whole[0]["train"] == [sum(split_of(d, ("test", "validation")) == "train" for d in digests)]


@pytest.mark.parametrize("what", [503, 429, "reset", "truncate", ("hang", 3)])
def test_faults_that_pass_while_packing(what, begun, whole, hub, worker):
    hub.fail("GET .*jsonl", what, times=2)
    answer = worker(begun)
    assert "error" not in answer, answer
    assert answer["ids"] == whole[0]["ids"] and answer["fingerprint"] == whole[0]["fingerprint"]
    assert hub.next_fault("GET /train_0.jsonl") is None  # it was met


@pytest.mark.slow
def test_faults_that_pass_at_the_start(tmp_path, whole, hub, worker):
    hub.forgive()
    hub.fail("/api/datasets/me/talks", "reset")
    hub.fail("GET .*jsonl", "truncate", times=2)
    answer = worker(tmp_path)
    assert answer.get("ids") == whole[0]["ids"], answer
    hub.forgive()


@pytest.mark.parametrize(
    "what, says", [(404, "is not on the hub, or it is private (404)"), (403, "is gated: accept its terms")]
)
def test_faults_that_stay_while_packing(what, says, begun, hub, worker):
    hub.fail("GET .*train_1.jsonl", what, times=10**6)
    answer = worker(begun)
    one_line(answer, f"Data set {NAME}", says, "--data_dir FOLDER")
    hub.forgive()
    assert "error" not in worker(begun)  # and goes on when it is mended


def test_gated_while_packing(begun, hub, worker):
    (hub.root / SET / ".gated").touch()
    try:
        one_line(worker(begun), NAME, "is gated: accept its terms", "--data_dir")
    finally:
        (hub.root / SET / ".gated").unlink()


def test_a_wrong_schema_names_the_columns(worker, tmp_path):
    answer = worker(tmp_path, data="me/odd")
    one_line(answer, "300 of 300 rows are no records", "question", "me/odd")


def test_rows_that_break_later_are_counted_and_stop_it(worker, tmp_path):
    one_line(worker(tmp_path, data="me/late"), "rows are no records", "not valid JSON", "train.jsonl, byte")


def test_max_samples_asks_for_a_part_of_the_set(worker, hub, tmp_path):
    hub.forgive()
    answer = worker(tmp_path, max_samples=60)
    assert answer["train"] == [60]
    pieces = sum("206" in request for request in hub.requests)
    hub.forgive()
    worker(tmp_path / "all")
    assert pieces < 0.75 * sum("206" in request for request in hub.requests)


def test_a_run_goes_on_with_the_commit_it_was_started_with(worker, hub, tmp_path, whole):
    hub.forgive()
    saved, place, before = whole[0]["state"], hub.root / SET, hub.root / f"{SET}_before"
    shutil.copytree(place, before)
    (before / ".commit").write_text(saved["commit"])
    try:
        (place / ".commit").write_text("b" * 40)
        one_line(worker(tmp_path / "gone", saved=saved), NAME, "no such revision", "--data_dir")
        hub.old_commit = saved["commit"]
        again = worker(tmp_path / "kept", saved=saved)
        assert again.get("fingerprint") == whole[0]["fingerprint"], again
        assert again["state"]["commit"] == saved["commit"] and again["ids"] == whole[0]["ids"]
    finally:
        hub.old_commit = None
        (place / ".commit").unlink()
        shutil.rmtree(before)
