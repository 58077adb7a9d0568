"""What a preference run writes down of an evaluation, and what it says in the end."""

from __future__ import annotations

import math
from pathlib import Path

from newllm_lib import console
from newllm_lib.evaluation.preferences import in_words

FAR = 10.0  # nats an answer: what is said then would hardly ever have been said by the base


def row_of_evaluation(found: dict) -> dict:
    """An evaluation as flat keys: `eval_accuracy`, `eval_margin`, …, `eval_accuracy_vague` for each kind."""
    row = {f"eval_{name}": value for name, value in found.items() if isinstance(value, (int, float))}
    for kind, figures in found.get("kinds", {}).items():
        row |= {f"eval_{name}_{kind}": figures[name] for name in ("accuracy", "margin")}
    return row


def say_result(result: dict, card: Path) -> None:
    """Before and after, a line each, and what that means."""
    before, after = (result[when]["figures"] for when in ("before", "after"))
    lengths = [f", answers of {one['length']:.0f} characters" for one in (before, after)]
    if not result["questions"]:  # a reward model writes none
        lengths = ["", ""]
    console.say(f"Before: {in_words(before, result['unit'])}{lengths[0]}")
    console.say(f"After:  {in_words(after, result['unit'])}{lengths[1]} (best/, step {result['best_step']})")
    answers = zip(result["questions"], result["before"]["answers"], result["after"]["answers"], strict=True)
    for question, old, new in list(answers)[:3]:
        console.say(f"  {question}\n    before: {_short(old)}\n    after:  {_short(new)}")
    console.say(verdict(result))
    console.say(f"  {card}")


def verdict(result: dict) -> str:
    """One sentence: whether training made the base prefer the better answers of pairs it had never seen."""
    before, after = (result[when]["figures"] for when in ("before", "after"))
    longer = result.get("longer", "--epochs")  # no key: a version before this one
    if result["problem"]:
        return f"Not a success: {result['problem']}."
    if math.isclose(before["margin"], after["margin"], abs_tol=1e-6):
        return f"Nothing was learned: the model prefers what its base did. Raise --learning_rate or {longer}."
    empty = max(after["empty"], after["repeating"])
    unwell = (
        f" {100 * empty:.0f} % of its answers are empty or repeat, as the base's were."
        if empty >= 0.5
        else ""
    )
    if (after.get("kl") or 0.0) > FAR:
        unwell += (
            f" Its answers are far from the base's (KL {after['kl']:.0f} nats an answer): read some "
            "before you use it."
        )
    if result["clearly_better"]:
        return f"Accuracy and margin on held-out pairs are above the base's, intervals apart.{unwell}"
    advice = (
        f"raise --learning_rate or {longer}"
        if after["margin"] >= before["margin"]
        else "lower --learning_rate"
    )
    return f"No clear gain: the intervals before and after overlap ({advice}, or give more pairs).{unwell}"


def _short(text: str, width: int = 100) -> str:
    text = " ".join(text.split())
    return (text[:width] + "…" if len(text) > width else text) or "(nothing)"
