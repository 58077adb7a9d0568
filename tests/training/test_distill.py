"""Distillation: the loss and its gradients against plain torch, and a student that follows its teacher."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from newllm_lib.data.tokenizer import train_bpe, wrap
from newllm_lib.errors import UsageError
from newllm_lib.ops import distillation
from newllm_lib.recipe import load_recipe
from newllm_lib.training import distill, train
from newllm_lib.training.model_config import build_model
from tests.helpers.small_runs import write_text

TINY = {
    "hidden_size": 16,
    "context_dim": 16,
    "mlp_size": 16,
    "num_layers": 1,
    "vocab_size": 300,
    "max_seq_length": 16,
    "sized_for": "cpu",
    "batch_size": 8,
    "data_dir": "text",
    "num_heads": 2,
    "dropout": 0.0,
}


@pytest.mark.parametrize("known", [40, 33])
@pytest.mark.parametrize(("share", "temperature"), [(0.0, 1.0), (0.5, 2.0), (1.0, 1.0), (0.7, 3.0)])
def test_the_loss_and_its_gradients_are_those_of_plain_torch(known, share, temperature, monkeypatch):
    monkeypatch.setattr(distillation, "CHUNK_ELEMENTS", 3 * 40)  # three tokens at a time
    torch.manual_seed(0)
    hidden, head = torch.randn(2, 7, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    teacher_hidden, teacher_head = torch.randn(2, 7, 5), torch.randn(known, 5)
    labels = torch.randint(0, 40, (2, 7))
    labels[0, 2] = labels[1, 0] = -100
    arguments = (hidden, head, teacher_hidden, teacher_head, labels, share, temperature)
    found = distillation.distillation_loss(*arguments)

    counted = labels != -100
    student = (hidden @ head.T)[counted]
    teacher = F.pad(teacher_hidden @ teacher_head.T, (0, 40 - known), value=-math.inf)[counted]
    soft = F.softmax(teacher / temperature, -1)
    apart = F.kl_div(F.log_softmax(student / temperature, -1), soft, reduction="sum") * temperature**2
    expected = (
        (1 - share) * F.cross_entropy(student, labels[counted], reduction="sum") + share * apart
    ) / counted.sum()
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected, [hidden, head])
    for one, other in zip(torch.autograd.grad(found, [hidden, head]), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        distillation.distillation_loss(*arguments, tokens=24), expected * counted.sum() / 24
    )


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)


@pytest.fixture(scope="module")
def words():
    """A tokenizer of 300 words."""
    texts = ["The city was founded in the north of the country, and it is old."] * 9
    return wrap(train_bpe(iter([texts]), 300))


def model_of(kind, tokenizer, loud=0.0):
    torch.manual_seed(4)
    model = build_model(load_recipe("demo", {**TINY, "model": kind}), len(tokenizer), tokenizer).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=loud)
    return model


@pytest.mark.parametrize("kind", ["new_llm", "tiny_gpt2"])
def test_a_student_follows_its_teacher(kind, words, monkeypatch):
    made = SimpleNamespace(model=model_of(kind, words, loud=0.3), tokenizer=words)
    monkeypatch.setattr(distill, "load_model", lambda name: made)
    teacher = distill.Teacher(
        load_recipe("demo", {**TINY, "teacher": "made", "distill_weight": 1.0}), words, torch.device("cpu")
    )
    student = model_of("new_llm", words)
    ids = torch.randint(3, len(words), (8, 16))
    labels = torch.randint(3, len(words), (8, 16))  # what the text says does not matter to it
    optimizer, losses = torch.optim.AdamW(student.parameters(), lr=2e-2), []
    for _ in range(60):
        optimizer.zero_grad()
        loss = teacher.loss(student, student.model(ids).last_hidden_state, ids, labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():  # documents of a block are apart for the teacher too
        ids[:, 8] = words.bos_token_id
        alone = teacher.hidden(ids[:, 8:])
    torch.testing.assert_close(teacher.hidden(ids)[:, 8:], alone, rtol=1e-4, atol=1e-4)


def test_the_trainer_distils_with_a_carried_state(here):
    teacher = train(load_recipe("demo", {**TINY, "max_steps": 1, "output_dir": "checkpoints/teacher"}))
    asked = {**TINY, "max_steps": 2, "tokenizer": str(teacher.best), "carry_state": True, "sample_tokens": 0}
    losses = []
    for name, more in (("alone", {}), ("taught", {"teacher": "teacher", "distill_weight": 0.7})):
        run = train(load_recipe("demo", {**asked, **more, "output_dir": f"checkpoints/{name}"}))
        losses.append([row["loss"] for row in run.metrics() if "loss" in row])
    assert all(math.isfinite(x) for row in losses for x in row) and losses[0] != losses[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": "words"}, "another tokenizer"),
        ({"model": "tiny_gpt2"}, "only new_llm"),
        ({"max_seq_length": 32, "tokenizer": "checkpoints/teacher/best"}, "sees 16 tokens"),
    ],
)
def test_what_does_not_go_together_is_one_line(changes, message, here):
    train(
        load_recipe(
            "demo", {**TINY, "model": "tiny_gpt2", "max_steps": 1, "output_dir": "checkpoints/teacher"}
        )
    )
    asked = {**TINY, "max_steps": 1, "teacher": "teacher", "output_dir": "checkpoints/student", **changes}
    with pytest.raises(UsageError, match=message) as error:
        train(load_recipe("demo", asked))
    assert "\n" not in str(error.value)
