"""Loads exported models with transformers alone, and compares what they say with what was said before.

Run in a process of its own, where newllm_lib cannot be imported: `python loads_anywhere.py FOLDER…`. Beside
each folder lies `<its name>.pt`: ids, mask, logits, loss and a greedy continuation of ours. Writes
one JSON object.
"""

import importlib.util
import json
import sys
from pathlib import Path

sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
sys.path = [place for place in sys.path if not (Path(place) / "newllm_lib").is_dir()]
assert importlib.util.find_spec("newllm_lib") is None

import torch  # noqa: E402
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer  # noqa: E402

found = {}
for folder in map(Path, sys.argv[1:]):
    said = torch.load(folder.with_suffix(".pt"))
    trusted = {"trust_remote_code": said["remote"]}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **trusted).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, **trusted)
    ids, mask = said["ids"], said["mask"]
    with torch.no_grad():
        logits = model(ids).logits
        padded = model(ids, attention_mask=mask).logits
        shown = model(ids, output_hidden_states=True, return_dict=False)
    greedy = model.generate(ids[:1], max_new_tokens=12, do_sample=False, pad_token_id=1)
    model.train()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    again = folder.with_name(f"{folder.name}_again")
    model.save_pretrained(again)
    tokenizer.save_pretrained(again)
    reread = AutoModelForCausalLM.from_pretrained(again, dtype=torch.float32, **trusted).eval()
    backbone = AutoModel.from_pretrained(folder, dtype=torch.float32, **trusted).eval()
    with torch.no_grad():
        inner = backbone(ids, output_hidden_states=True)
    found[folder.name] = {
        "class": type(model).__module__,
        "logits": float((logits - said["logits"]).abs().max()),
        "padded": float(((padded - said["padded"]) * mask.unsqueeze(-1)).abs().max()),
        "loss": abs(float(loss) - said["loss"]),
        "greedy": greedy[0].tolist() == said["greedy"],
        "gradients": all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters()),
        "reread": float((reread(ids).logits - said["logits"]).abs().max()),
        "tokens": tokenizer("Ada likes tea")["input_ids"] == said["tokens"],
        "tuple": isinstance(shown, tuple) and torch.equal(shown[0], logits),
        "hidden_states": torch.equal(inner.hidden_states[-1], inner.last_hidden_state),
    }
print(json.dumps(found))
