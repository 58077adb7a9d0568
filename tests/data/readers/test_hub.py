"""The real loading code against a server that speaks the hub's protocol, and against no server at all."""

import shutil
from pathlib import Path

import pytest

from newllm_lib import hub as hub_module
from newllm_lib.data.readers.hub import HubName, HubSource
from newllm_lib.errors import NewLLMError
from newllm_lib.hub import Asked, HubUnreachable, explain
from tests.helpers.hub_process import hub_worker
from tests.helpers.hub_server import HubServer
from tests.helpers.texts import byte_level_bpe, dialogues, paragraphs, write_jsonl
from tests.helpers.wikitext import SPLITS, wikitext, write_wikitext


def write_gpt2(place: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    backend = byte_level_bpe(300, ["<|endoftext|>"])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(place)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    write_wikitext(root / "datasets/Salesforce/wikitext")
    for name in ("lines", "closed", "hidden"):
        (root / "datasets/me" / name).mkdir(parents=True)
        write_jsonl(root / "datasets/me" / name / "train.jsonl", [{"text": t} for t in paragraphs(400)])
    (root / "datasets/me/closed/.gated").touch()
    (root / "datasets/me/hidden/.private").touch()
    (root / "datasets/me/chats").mkdir()
    write_jsonl(root / "datasets/me/chats/train.jsonl", [{"messages": m} for m in dialogues(400)])
    write_jsonl(root / "datasets/me/chats/validation.jsonl", [{"messages": m} for m in dialogues(20, seed=9)])
    (root / "datasets/me/odd").mkdir()
    write_jsonl(root / "datasets/me/odd/train.jsonl", [{"question": t} for t in paragraphs(9)])
    write_gpt2(root / "models/gpt2")
    with HubServer(root) as server:
        yield server


@pytest.fixture(scope="module")
def worker(hub, tmp_path_factory):
    """Sends recipes to a worker that knows `hub`."""
    with hub_worker(hub, tmp_path_factory) as ask:
        yield ask


@pytest.fixture(autouse=True)
def _forgive(request):
    yield
    if "hub" in request.fixturenames:
        request.getfixturevalue("hub").forgive()


def one_line(answer: dict) -> str:
    assert "\n" not in answer["error"]
    return answer["error"]


def test_wikitext_is_articles_byte_for_byte(worker, cache):
    answer = worker(cache, data="wikitext")
    for split, (first, count) in SPLITS.items():
        assert answer[split][:2] == [count, len(wikitext(first, count).encode())]


def test_wikitext_by_its_hub_id_and_configuration(worker, cache):
    named = worker(cache, data="Salesforce/wikitext:wikitext-2-raw-v1")
    assert named["train"][0] == 120
    wrong = one_line(worker(cache, data="Salesforce/wikitext"))
    assert "wikitext-103-raw-v1" in wrong and "owner/name:CONFIG" in wrong


def test_a_pinned_set_once_packed_needs_no_network(worker, hub, cache):
    first = worker(cache, data="wikitext")
    hub.forgive()
    assert worker(cache, data="wikitext")["fingerprint"] == first["fingerprint"]
    assert hub.requests == []


def test_a_hub_without_the_pinned_revision_gives_its_newest(worker, hub, cache):
    mark = hub.root / "datasets/Salesforce/wikitext/.commit"
    pinned = mark.read_text()
    mark.write_text("a" * 40)
    try:
        answer = worker(cache, data="wikitext")
    finally:
        mark.write_text(pinned)
    assert answer["train"][0] == 120 and any("no revision b08601e0" in line for line in answer["said"])


def test_any_set_with_text_or_messages(worker, cache):
    texts = worker(cache, data="me/lines")
    assert sum(texts[split][0] for split in SPLITS) == 400
    assert sum(texts[split][1] for split in SPLITS) == sum(len(t.encode()) for t in paragraphs(400))
    chats = worker(cache, data="me/chats")
    assert chats["validation"][0] == 20 and chats["train"][0] + chats["test"][0] == 400


def test_max_samples(worker, cache):
    assert worker(cache, data="me/lines", max_samples=50)["train"][0] == 50


def test_gpt2_by_name(worker, cache):
    answer = worker(cache, data="me/lines", tokenizer="gpt2")
    assert answer["vocabulary"] == 305  # its 300 and the five of our control tokens that it lacks


def test_not_found_gated_and_hidden(worker, cache):
    for data, says in (
        ("no/such", "is not on the hub, or it is private"),
        ("me/hidden", "is not on the hub, or it is private"),
        ("me/closed", "is gated: accept its terms"),
        ("me/lines@abc", "no such revision"),
    ):
        answer = worker(cache, data=data)
        message = one_line(answer)
        assert data.split("@")[0] in message and says in message and "--data_dir" in message
        assert answer["exit_code"] in (1, 2)
    assert "use --tokenizer bpe" in one_line(worker(cache, data="me/lines", tokenizer="no/such"))


def test_a_wrong_schema_names_the_columns(worker, cache):
    assert "question" in one_line(worker(cache, data="me/odd"))


@pytest.mark.parametrize("match", ["/api/datasets/me/lines", "GET .*jsonl"])
@pytest.mark.parametrize(
    "what", [503, 429, "reset", "truncate", ("hang", 1.5)]
)  # the worker waits a second for an answer
def test_faults_that_pass(worker, hub, cache, match, what):
    hub.fail(match, what)
    assert sum(worker(cache, data="me/lines")[split][0] for split in SPLITS) == 400
    assert hub.next_fault("GET /api/datasets/me/lines /train.jsonl") is None  # it was met


def test_a_fault_that_stays(worker, hub, cache):
    hub.fail("/api/datasets/", 503, times=100)
    answer = worker(cache, data="me/lines")
    assert "me/lines" in one_line(answer) and "503" in answer["error"] and "--data_dir" in answer["error"]
    assert sum("trying again" in line for line in answer["said"]) == 4


def test_a_set_that_moved_is_packed_anew(worker, hub, cache):
    place = hub.root / "datasets/me/lines"
    before = worker(cache, data="me/lines")
    shutil.copy(place / "train.jsonl", place / ".kept")
    try:
        write_jsonl(place / "train.jsonl", [{"text": t} for t in paragraphs(500, seed=3)])
        after = worker(cache, data="me/lines")
    finally:
        shutil.move(place / ".kept", place / "train.jsonl")
    assert sum(after[s][0] for s in SPLITS) == 500 and after["fingerprint"] != before["fingerprint"]
    assert any("has moved from commit" in line for line in after["said"])


def test_no_server_at_all(worker, hub, cache):
    """The last test that uses the server: it is gone afterwards."""
    before = worker(cache, data="me/lines")
    hub.stop()
    answer = worker(cache, data="me/other")
    assert "me/other cannot be read from the Hugging Face hub (no connection to 127.0.0.1" in one_line(answer)
    assert "--data_dir FOLDER" in answer["error"] and answer["exit_code"] == 1 and answer["seconds"] < 10
    again = worker(cache, data="me/lines")  # packed earlier: goes on, and says so
    assert again["fingerprint"] == before["fingerprint"] and "Going on with its commit" in again["said"][0]
    assert "use --tokenizer bpe" in one_line(worker(cache, data="me/lines", tokenizer="me/tokenizer"))


class BreakingStream:
    """Rows 0 to 9; the connection breaks before row `breaks[0]`, then before `breaks[1]`, …"""

    def __init__(self, breaks: list[int], start: int = 0):
        self.breaks, self.start = breaks, start

    def skip(self, count):
        return BreakingStream(self.breaks, count)

    def __iter__(self):
        for i in range(self.start, 10):
            if self.breaks and self.breaks[0] == i:
                self.breaks.pop(0)
                raise ConnectionResetError("broken")
            yield {"n": i}


def broken_dataset(monkeypatch, breaks):
    monkeypatch.setattr(hub_module, "DELAYS", (0, 0))
    monkeypatch.setattr(HubSource, "__init__", lambda self: None)
    dataset = HubSource()
    dataset.name, dataset.commit, dataset._names = HubName("me/x"), "c", {"train": "train"}
    dataset._loaded = {"train": BreakingStream(breaks)}
    return dataset


def test_a_stream_that_breaks_goes_on_where_it_stopped(monkeypatch):
    dataset = broken_dataset(monkeypatch, [0, 3, 3, 4, 9])
    assert [row["n"] for _, row in dataset.rows("train")] == list(range(10))


def test_a_stream_that_keeps_breaking_ends_in_one_line(monkeypatch):
    with pytest.raises(HubUnreachable, match="me/x .*the connection broke"):
        list(broken_dataset(monkeypatch, [3, 3, 3]).rows("train"))


def test_names_of_data_sets():
    assert HubName.parse("a/b") == ("a/b", None, "main")
    assert HubName.parse("a/b-c:conf.1@refs/convert/parquet") == ("a/b-c", "conf.1", "refs/convert/parquet")
    assert HubName.parse("nonsense") is None and HubName.parse("a/b/c") is None


def test_offline_mode_is_said(cache, recipe, monkeypatch):
    from newllm_lib.data import prepare

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NewLLMError, match="HF_HUB_OFFLINE is set"):
        prepare(recipe(data="wikitext"), cache)


def test_an_unknown_failure_is_one_line_too():
    error = explain(RuntimeError("two\nlines"), Asked("Data set a/b", "name another"))
    assert str(error) == "Data set a/b cannot be loaded (RuntimeError: two lines): name another."
