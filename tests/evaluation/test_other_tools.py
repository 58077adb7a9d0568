"""Other people's tools on an export, each as its own command, where newllm_lib cannot be imported."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from newllm_lib.export.folder import export
from tests.helpers.anywhere import WITHOUT, alone
from tests.helpers.texts import dialogues, write_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
PHASE7 = {"ssm_ranks": 4, "htt_rank": 4, "num_heads": 2, "hidden_size": 16, "context_dim": 16}
MODELS = {"new_llm": {}, "tiny_gpt2": {"max_seq_length": 64}, "phase7": {**PHASE7, "attention_window": 8}}
QUESTIONS = [
    {"question": f"the {word} house", "choices": ["old river", "green tea", " and"], "answer": i % 3}
    for i, word in enumerate(("red", "old", "quiet", "small"))
]
TASK = """\
task: houses
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory, bpe, make_model):
    """A model of ours with its tokenizer, and the folder that it was exported to."""
    place = tmp_path_factory.mktemp(request.param)
    model = make_model(bpe, request.param, scale=0.5, **MODELS[request.param]).eval()
    model.save_pretrained(place / "made")
    bpe.save_pretrained(place / "made")
    return model, bpe, export(place / "made", place / "export")


def test_lm_eval_measures_what_the_model_says_here(exported, tmp_path):
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("needs EleutherAI's harness: pip install lm-eval")
    model, tokenizer, folder = exported
    data = write_jsonl(tmp_path / "houses.jsonl", QUESTIONS)
    (tmp_path / "houses.yaml").write_text(TASK.format(data=data))
    choices = f"pretrained={folder},trust_remote_code=True,dtype=float32"
    words = ["--model", "hf", "--model_args", choices, "--tasks", "houses", "--include_path", str(tmp_path)]
    how = ["--device", "cpu", "--batch_size", "2", "--log_samples", "--output_path", str(tmp_path / "out")]
    path = str(Path(importlib.util.find_spec("lm_eval").origin).parents[1])
    alone(tmp_path, str(WITHOUT), "lm_eval", *words, *how, path=path)
    (found,) = (tmp_path / "out").rglob("samples_houses_*.jsonl")
    samples = [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines()]
    assert len(samples) == len(QUESTIONS)
    for sample in samples:
        question = QUESTIONS[sample["doc_id"]]
        theirs = [float(answer[0][0]) for answer in sample["resps"]]
        ours = [_log_likelihood(model, tokenizer, question["question"], c) for c in question["choices"]]
        assert theirs == pytest.approx(ours, abs=1e-3)  # sums of some ten logits' differences


@torch.no_grad()
def _log_likelihood(model, tokenizer, context: str, choice: str) -> float:
    """Of " choice" after the context, in the tokens of both together, as the harness has it."""
    prompt = tokenizer(context)["input_ids"]
    ids = tokenizer(f"{context} {choice}")["input_ids"]
    scores = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return sum(scores[i - 1, ids[i]].item() for i in range(len(prompt), len(ids)))


def test_trl_trains_it_by_its_command(exported, tmp_path):
    _, tokenizer, folder = exported
    (tmp_path / "talks").mkdir()
    write_jsonl(tmp_path / "talks" / "train.jsonl", [{"messages": talk} for talk in dialogues(24)])
    place, out = tmp_path / "talks", tmp_path / "out"
    words = (
        f"--model_name_or_path {folder} --dataset_name {place} --output_dir {out} --trust_remote_code true"
    )
    how = (
        "--max_steps 3 --per_device_train_batch_size 4 --learning_rate 1e-2 --max_length 48 --report_to none"
    )
    more = "--use_cpu true --bf16 false --logging_steps 1 --gradient_checkpointing false"
    # what `trl sft` starts through accelerate
    alone(tmp_path, str(WITHOUT), "trl.scripts.sft", *words.split(), *how.split(), *more.split())
    state = json.loads(next(out.rglob("trainer_state.json")).read_text(encoding="utf-8"))
    losses = [row["loss"] for row in state["log_history"] if "loss" in row]
    assert len(losses) == 3 and losses[-1] < losses[0] < 2 * torch.tensor(float(len(tokenizer))).log()


def test_a_pipeline_writes_what_is_written_here(exported, tmp_path):
    model, tokenizer, folder = exported
    text = "the old house"
    code = (
        "import json, sys; from transformers import pipeline; "
        "pipe = pipeline('text-generation', model=sys.argv[1], trust_remote_code=True, device='cpu'); "
        "told = pipe(sys.argv[2], max_new_tokens=12, do_sample=False, return_tensors=True); "
        "assert 'newllm_lib' not in sys.modules; print(json.dumps(told[0]['generated_token_ids']))"
    )
    (tmp_path / "piped.py").write_text(code)
    theirs = json.loads(alone(tmp_path, str(WITHOUT), "piped", str(folder), text, path=str(tmp_path)))
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    ours = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    assert theirs == ours[0].tolist()
