"""A whole command measured: figures from its own account."""

import argparse
import json

import pytest

from benchmarks import common, whole_run
from newllm_lib.errors import NewLLMError


def test_what_is_written_of_a_run(tmp_path, monkeypatch):
    """The command is a stand-in that writes a run's account; its words are those of a user's command."""
    asked = []

    def command(words, **how):
        asked.append((words, how["env"]))
        run = words[words.index("--output_dir") + 1]
        seconds = dict.fromkeys(("imports", "data", "model", "kernels"), 1.0)
        seconds |= {"steps": 5.0, "evaluation": 0.5, "samples": 0.25, "saving": 0.25, "report": 0.0}
        account = {"total_seconds": 10.0, "first_step_seconds": 4.0, "seconds": seconds}
        account |= {"training_tokens_per_second": 100.0, "evaluation_tokens_per_second": None}
        (tmp_path / run).mkdir()
        (tmp_path / run / "timing.json").write_text(json.dumps(account))
        return 0

    monkeypatch.setattr(whole_run.subprocess, "call", command)
    parser = argparse.ArgumentParser()
    whole_run.add_arguments(parser)
    out = tmp_path / "results.csv"
    given = ["demo", "wikitext", "--cold", "--set", "max_steps=3", "--out", str(out)]
    arguments = parser.parse_args(given)
    arguments.json = True
    rows = whole_run.main(arguments)["rows"]
    found = {row["metric"]: float(row["value"]) for row in rows if "wikitext" in row["model"]}
    assert found["first step"] == 4 and found["in steps"] == 5 and found["evaluation, samples, saving"] == 0.1
    assert found["training speed"] == 100 and "evaluation speed" not in found and found["host memory"] > 0
    assert len(common.read(out)) == len(rows) and "cold, max_steps=3" in rows[0]["note"]
    (words, environment), _ = asked
    assert words[2:7] == ["newllm_lib", "train", "demo", "--model", "new_llm"] and words[-2:] == [
        "--max_steps",
        "3",
    ]
    assert environment["TRITON_CACHE_DIR"] != environment["NEWLLM_CACHE"]


def test_a_command_that_fails_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(
        whole_run.subprocess, "call", lambda words, stdout, **how: stdout.write("newllm: no disk\n") * 0 + 1
    )
    arguments = argparse.Namespace(model="new_llm", set=[], cores=None, cold=False)
    with pytest.raises(NewLLMError, match="train demo failed: no disk"):
        whole_run.measured("demo", tmp_path, arguments)
