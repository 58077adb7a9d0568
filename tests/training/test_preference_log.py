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
