"""The verdict on a preference run: a gain only where the intervals stand apart, and never without what it
cost.
"""

from __future__ import annotations

import pytest

from newllm_lib.training.preferences.log import verdict


def result(margin=3.0, apart=True, problem=None, **after):
    figures = {"empty": 0.0, "repeating": 0.0, "kl": 1.0, "margin": margin, **after}
    before = {"margin": 1.0, "empty": 0.0, "repeating": 0.0}
    return {
        "before": {"figures": before},
        "after": {"figures": figures},
        "clearly_better": apart,
        "problem": problem,
    }


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (result(), "intervals apart."),
        (result(apart=False), "No clear gain: the intervals before and after overlap (raise --learning_rate"),
        (result(apart=False) | {"longer": "--max_steps"}, "raise --learning_rate or --max_steps"),
        (result(margin=1.0) | {"longer": "--max_steps"}, "Raise --learning_rate or --max_steps."),
        (result(margin=0.5, apart=False), "(lower --learning_rate"),
        (result(margin=1.0, apart=False), "Nothing was learned"),
        (result(problem="80 % of its answers are empty"), "Not a success: 80 % of its answers are empty."),
        (result(kl=42.0), "intervals apart. Its answers are far from the base's (KL 42 nats an answer)"),
        (result(repeating=0.75), "intervals apart. 75 % of its answers are empty or repeat"),
        (result(kl=None), "intervals apart."),
    ],
)
def test_verdict(found, words):
    assert words in verdict(found)
    assert ("far from" in verdict(found)) == (found["after"]["figures"]["kl"] == 42.0)


def test_a_run_that_max_steps_ended_is_told_of_them():
    """Raising --epochs beside --max_steps would change nothing; sft's sentence and GRPO's too."""
    from types import SimpleNamespace

    from newllm_lib.training.grpo.run import verdict as of_grpo
    from newllm_lib.training.sft.card import verdict as of_sft
    from newllm_lib.training.trl.task import TrlRun

    def longer(steps, limit):
        return TrlRun.longer.fget(SimpleNamespace(total_steps=steps, recipe=SimpleNamespace(max_steps=limit)))

    assert [longer(4, 4), longer(4, None), longer(4, 9)] == ["--max_steps", "--epochs", "--epochs"]
    same = {"bits_per_byte": 1.0}
    assert "--learning_rate or --max_steps" in of_sft(
        {"before": same, "after": same, "longer": "--max_steps"}
    )
    after = {"empty": 0.0, "repeating": 0.0}
    assert "more --max_steps" in of_grpo({"after": after, "clearly_better": False, "longer": "--max_steps"})
