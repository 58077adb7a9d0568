"""Loads an exported reward model where newllm_lib cannot be imported, by its card, and scores its talk.

    python tests/training/score_alone.py FOLDER

Writes one JSON object: the tokens and their score.
"""

import importlib.util
import json
import re
import sys
from pathlib import Path

sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
sys.path = [place for place in sys.path if not (Path(place) / "newllm_lib").is_dir()]
assert importlib.util.find_spec("newllm_lib") is None

card = (Path(sys.argv[1]) / "README.md").read_text(encoding="utf-8")
(code,) = re.findall(r"```python\n(.*?)```", card.partition("## Use")[2], re.DOTALL)
names: dict = {}
exec(code.replace("FOLDER_OR_REPOSITORY", sys.argv[1]), names)
score = names["model"](names["ids"]).logits.item()
print(json.dumps({"ids": names["ids"][0].tolist(), "score": score}))
