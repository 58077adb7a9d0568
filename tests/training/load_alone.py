"""Loads a preference run as its card tells others to, and writes down the logits: of the adapters beside
their base, and merged.

    python tests/training/load_alone.py RUN EXPORT LOGITS_FILE [ours]

Nothing but transformers and peft is imported; with `ours`, also `newllm_lib.models`.
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

run, merged, output = map(Path, sys.argv[1:4])
if "ours" in sys.argv:
    import newllm_lib.models  # noqa: F401

own = run / "base"
config = json.loads((run / "best" / "adapter_config.json").read_text(encoding="utf-8"))
base = AutoModelForCausalLM.from_pretrained(own if own.is_dir() else config["base_model_name_or_path"])
tokenizer = AutoTokenizer.from_pretrained(run / "best")
adapted = PeftModel.from_pretrained(base, run / "best").eval()
turn = [{"role": "user", "content": "機械学習とは何ですか。"}]
ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)[
    "input_ids"
]
with torch.no_grad():
    found = {"adapted": adapted(input_ids=ids).logits}
    with adapted.disable_adapter():
        found["base"] = adapted(input_ids=ids).logits
    found["merged"] = AutoModelForCausalLM.from_pretrained(merged)(input_ids=ids).logits
torch.save({"ids": ids, **found}, output)
loaded = {name.partition(".")[0] for name in sys.modules} & {"trl", "datasets"}
loaded |= {".".join(name.split(".")[:2]) for name in sys.modules if name.startswith("newllm_lib.")}
print(json.dumps(sorted(loaded)))
