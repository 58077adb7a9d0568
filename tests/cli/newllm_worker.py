"""`newllm` commands and notebook cells, one after the other in one process that knows a test's hub by
HF_ENDPOINT.

Each line of standard input is a JSON object: `argv` (with `said`, the lines a user types), or `form` with its
`values` (the words that the form's training is started with), or `cells` with the `run` that they are about.
Each answer is one line on standard
output: the exit code, what was shown, and what went to standard error.
"""

import contextlib
import io
import json
import sys
import time
import types
from pathlib import Path

from newllm_lib import console, hub
from newllm_lib.cli import main
from newllm_lib.data.streaming import segment_pool

CELLS = Path(__file__).parents[2] / "notebooks" / "src" / "cells"
hub.DELAYS = (0.05, 0.05, 0.05, 0.05)
segment_pool.cores = lambda: 1  # a process costs most of a second


def answer(asked: dict) -> dict:
    if "form" in asked:
        from newllm_lib.colab.settings import FORMS

        return {"argv": FORMS[asked["form"]].read(**asked["values"]).arguments()}
    if "cells" in asked:
        from newllm_lib.runs import Run

        settings = types.SimpleNamespace(name=asked["recipe"], extra={"system": ""})
        names = {"run": Run(asked["run"]), "settings": settings}
        for cell in asked["cells"]:
            exec((CELLS / f"{cell}.py").read_text(encoding="utf-8"), names)
        return {"code": 0, "turns": names["conversation"].turns}
    sys.stdin = io.StringIO(asked.get("said", ""))
    code = main(asked["argv"])
    console.also_to(None)
    return {"code": code}


if __name__ == "__main__":
    asked_for, answers = sys.stdin, sys.stdout
    for line in asked_for:
        out, err, began = io.StringIO(), io.StringIO(), time.monotonic()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            given = answer(json.loads(line))
        given |= {"out": out.getvalue(), "err": err.getvalue(), "seconds": time.monotonic() - began}
        print(json.dumps(given), file=answers, flush=True)
