"""Prepares data on demand in a process of its own, which knows the test's hub by HF_ENDPOINT (read once, at import).

Each line of standard input is a JSON object of recipe fields, with `cache` (and `show`: give back the packed text, too);
each answer is one line on standard output.
"""

import json
import sys
import time
from types import SimpleNamespace

from newllm_lib import console
from newllm_lib.data import hub, prepare
from newllm_lib.errors import NewLLMError

hub.DELAYS = (0.05, 0.05, 0.05, 0.05)


def answer(fields: dict) -> dict:
    start = time.monotonic()
    cache, show = fields.pop("cache"), fields.pop("show", False)
    try:
        data = prepare(SimpleNamespace(**fields), cache)
    except NewLLMError as error:
        return {"error": str(error), "exit_code": error.exit_code, "seconds": time.monotonic() - start}
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    counts = {split: [part.documents, part.bytes, part.tokens] for split, part in parts.items()}
    if show:
        counts["text"] = {split: data.tokenizer.decode(part.ids) for split, part in parts.items()}
    return {**counts, "fingerprint": data.fingerprint, "vocabulary": len(data.tokenizer)}


if __name__ == "__main__":
    said: list[str] = []
    console.say = lambda text="": said.append(text)
    for line in sys.stdin:
        said.clear()
        print(json.dumps({**answer(json.loads(line)), "said": said}), flush=True)
