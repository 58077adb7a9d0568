"""The commands of docs/guides/serve-and-share.md are commands of today."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from newllm_lib.cli.parser import parse
from newllm_lib.serve.app import Limits

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "serve-and-share.md"


def test_every_command_is_understood():
    lines = [
        line
        for block in re.findall(r"```bash\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
        for line in block.splitlines()
        if line.startswith("newllm ")
    ]
    assert {parse(shlex.split(line)[1:]).command for line in lines} == {"serve", "export"}


def test_the_python_is_the_servers(engine, serving, monkeypatch, capsys):
    served = serving(engine())
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    exec(code.replace("http://127.0.0.1:8000/v1", served.address), {})
    assert capsys.readouterr().out.endswith("\n")


def test_the_limits_are_those_it_names():
    limits, text = Limits(), GUIDE.read_text(encoding="utf-8")
    assert f"Limits: {limits.body_bytes >> 20} MiB a request, {limits.tokens:,} tokens" in text
    assert f"{limits.seconds / 60:.0f} minutes an answer, {limits.waiting} requests waiting" in text
