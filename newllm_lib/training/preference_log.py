"""What a preference run says while it trains, and its rows in `metrics.jsonl`."""

from __future__ import annotations

import math
import time
from pathlib import Path

from transformers import TrainerCallback

from newllm_lib import console
from newllm_lib.evaluation.preferences import in_words
from newllm_lib.training.callbacks import LogBlock

FAR = 10.0  # nats an answer: what is said then would hardly ever have been said by the base


def row_of_evaluation(found: dict) -> dict:
    """An evaluation as flat keys: `eval_accuracy`, `eval_margin`, …, and `eval_accuracy_vague` for each kind."""
    row = {f"eval_{name}": value for name, value in found.items() if isinstance(value, (int, float))}
    for kind, figures in found.get("kinds", {}).items():
        row |= {f"eval_{name}_{kind}": figures[name] for name in ("accuracy", "margin")}
    return row


class PreferenceLog(LogBlock):
    """The log of a preference run:

    Epoch 1/1
      Training...  40% | step 100/250 | Loss: 0.612 | reward margin +0.21 | accuracy 78% | 12 pairs/s | 1.2 min left
      Val: Loss=0.601 accuracy 71.2 % (66.0–75.9), margin +2.10 nats (+1.52 to +2.66), KL 0.41 ✓
      [Checkpoint saved]
    """

    def training_line(self, row: dict, state, final: bool = False) -> None:
        now, step, total = time.monotonic(), row["step"], state.max_steps
        if self.last_line and not final and now - self.last_line < self.every_seconds:
            return
        self.last_line = now
        line = f"  Training... {100 * step / total:3.0f}% | step {step}/{total} | Loss: {row['loss']:.3f}"
        if "rewards/margins" in row:
            line += f" | reward margin {row['rewards/margins']:+.2f} | accuracy {100 * row['rewards/accuracies']:.0f}%"
        line += f" | {row['pairs_per_second']:.3g} pairs/s"
        if self.began is None:
            self.began = now, step
        elif step > self.began[1]:
            line += f" | {console.duration((now - self.began[0]) / (step - self.began[1]) * (total - step))} left"
        console.say(line)

    @staticmethod
    def validation_line(metrics: dict, best: bool) -> None:
        kl = f", KL {metrics['kl']:.2f}" if metrics.get("kl") is not None else ""
        console.say(f"  Val: Loss={metrics['loss']:.3f} {in_words(metrics)}{kl}{' ✓' if best else ''}")


class LogBeforeSaving(TrainerCallback):
    """A row before each checkpoint, so that no figure is averaged over two processes. The last of the callbacks."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log = control.should_log or control.should_save
        return control


def say_result(result: dict, card: Path) -> None:
    """Before and after, a line each, and what that means."""
    before, after = (result[when]["figures"] for when in ("before", "after"))
    console.say(f"Before: {in_words(before)}, answers of {before['length']:.0f} characters")
    console.say(f"After:  {in_words(after)}, answers of {after['length']:.0f} characters (best/, step {result['best_step']})")
    answers = zip(result["questions"], result["before"]["answers"], result["after"]["answers"], strict=True)
    for question, old, new in list(answers)[:3]:
        console.say(f"  {question}\n    before: {_short(old)}\n    after:  {_short(new)}")
    console.say(verdict(result))
    console.say(f"  {card}")


def verdict(result: dict) -> str:
    """One sentence: whether training made the base prefer the better answers of pairs it had never seen."""
    before, after = (result[when]["figures"] for when in ("before", "after"))
    if result["problem"]:
        return f"Not a success: {result['problem']}."
    if math.isclose(before["margin"], after["margin"], abs_tol=1e-6):
        return "Nothing was learned: the model prefers what its base did. Raise --learning_rate or --epochs."
    empty = max(after["empty"], after["repeating"])
    unwell = f" {100 * empty:.0f} % of its answers are empty or repeat, as the base's were." if empty >= 0.5 else ""
    if (after.get("kl") or 0.0) > FAR:
        unwell += f" Its answers are far from the base's (KL {after['kl']:.0f} nats an answer): read some before you use it."
    if result["clearly_better"]:
        return f"Accuracy and margin on held-out pairs are above the base's, intervals apart.{unwell}"
    advice = "raise --learning_rate or --epochs" if after["margin"] >= before["margin"] else "lower --learning_rate"
    return f"No clear gain: the intervals before and after overlap ({advice}, or give more pairs).{unwell}"


def _short(text: str, width: int = 100) -> str:
    text = " ".join(text.split())
    return (text[:width] + "…" if len(text) > width else text) or "(nothing)"
