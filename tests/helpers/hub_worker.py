"""Prepares data on demand in a process of its own, which knows the test's hub by HF_ENDPOINT (read once, at
import).

Each line of standard input is a JSON object of recipe fields, with `cache` (and `show`: give back the packed
text, too; `saved`: see `prepare`); each answer is one line on standard output. A streamed training split is
counted by going through its first pass.
"""

import hashlib
import json
import sys
import time
from types import SimpleNamespace

from newllm_lib import console, hub
from newllm_lib.data import prepare
from newllm_lib.data.streaming import segment_pool, segments, stream
from newllm_lib.errors import NewLLMError

hub.DELAYS = (0.05, 0.05, 0.05, 0.05)
segment_pool.cores = lambda: 1  # a process costs most of a second
segments.SEGMENT_BYTES, segments.HEAD, stream.FIRST, stream.WINDOW = 12_000, 6, 2, 4


def answer(fields: dict) -> dict:
    start = time.monotonic()
    cache, show = fields.pop("cache"), fields.pop("show", False)
    data, saved = None, fields.pop("saved", None)
    try:
        data = prepare(SimpleNamespace(**fields), cache, saved=saved)
        if isinstance(data.train, stream.StreamedSplit):
            return streamed(data)
    except NewLLMError as error:
        return {"error": str(error), "exit_code": error.exit_code, "seconds": time.monotonic() - start}
    finally:
        if data is not None:
            data.close()
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    counts = {split: [part.documents, part.bytes, part.tokens] for split, part in parts.items()}
    if show:
        counts["text"] = {split: data.tokenizer.decode(part.ids) for split, part in parts.items()}
    return {**counts, "fingerprint": data.fingerprint, "vocabulary": len(data.tokenizer)}


def streamed(data) -> dict:
    number, documents, digest = 0, 0, hashlib.sha256()
    while data.train.members(0, number):
        window = data.train.window(0, number)
        documents += int((window.ids == data.tokenizer.bos_token_id).sum()) - 1
        digest.update(window.ids.tobytes())
        number += 1
    return {
        "train": [documents],
        "ids": digest.hexdigest(),
        "fingerprint": data.fingerprint,
        "state": data.state(),
    }


if __name__ == "__main__":
    said: list[str] = []
    console.say = lambda text="": said.append(text)
    for line in sys.stdin:
        said.clear()
        print(json.dumps({**answer(json.loads(line)), "said": said}), flush=True)
