"""What tells the better answer without understanding: its length, its first word, which words it holds.

A set of pairs where such a shortcut wins teaches the shortcut. So three classifiers that see nothing else are
trained on the training pairs and tried on the held-out ones, and their scores stand beside the model's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from newllm_lib.data.preferences.pairs import Pair

_WORD = re.compile(r"[一-鿿々〆]+|[ぁ-ゟ]+|[ァ-ヿー]+|[^\W\d_ぁ-ヿ一-鿿々〆]+|\d+|[^\w\s]")
_BIN = 4  # characters: lengths are told apart this finely
_MOST_FEATURES = 4000  # the most frequent ones of the training pairs
_MOST_PAIRS = 1000  # of each split: more would change nothing but the time


def shortcuts(train: Sequence[Pair], evaluation: Sequence[Pair]) -> dict[str, float]:
    """Accuracy on `evaluation` (0 to 1; ties count half) of classifiers trained on `train`, by what they see:
    "length", "first_word", "first_two_words" and "bag_of_words" of the answer. {} where the training answers
    are all single."""
    train, evaluation = [p for p in train if p.chosen and p.rejected][:_MOST_PAIRS], evaluation[:_MOST_PAIRS]
    if not train:
        return {}
    return {name: _accuracy(features, train, evaluation) for name, features in _FEATURES.items()}


def words(text: str) -> list[str]:
    """Runs of one script: good enough as words of Japanese, and words of languages that separate them."""
    return _WORD.findall(text)


def _length(text: str) -> Counter:
    return Counter({"length": len(text) / 20, f"bin {len(text) // _BIN}": 1.0})


def _bag(text: str) -> Counter:
    found = words(text)
    pairs = [a + b for run in found for a, b in zip(run, run[1:], strict=False) if not run.isascii()]
    return Counter(dict.fromkeys([*found, *pairs], 1.0))


_FEATURES: dict[str, Callable[[str], Counter]] = {
    "length": _length,
    "first_word": lambda text: Counter(words(text)[:1]),
    "first_two_words": lambda text: Counter(["".join(words(text)[:2])]),
    "bag_of_words": _bag,
}


def _accuracy(features: Callable[[str], Counter], train: Sequence[Pair], evaluation: Sequence[Pair]) -> float:
    """Pairwise logistic regression (Bradley and Terry) on the difference of the two answers' features."""
    sides = [[(features(p.chosen), features(p.rejected)) for p in pairs] for pairs in (train, evaluation)]
    frequent = Counter(name for good, bad in sides[0] for name in {*good, *bad}).most_common(_MOST_FEATURES)
    columns = {name: i for i, (name, _) in enumerate(frequent)}
    x, unseen = (_differences(side, columns) for side in sides)
    weights, step = np.zeros(len(columns)), 4.0 / max(1.0, float((x**2).sum(1).mean()))
    for _ in range(300):  # gradient descent: the problem is convex, and small
        wrong = 1 / (1 + np.exp(np.clip(x @ weights, -30, 30)))
        weights += step * (x.T @ wrong / len(x) - 1e-3 * weights)
    scores = unseen @ weights
    return float(((scores > 1e-9) + 0.5 * (abs(scores) <= 1e-9)).mean())


def _differences(side: list[tuple[Counter, Counter]], columns: dict[str, int]) -> np.ndarray:
    """(pairs, features): the good answer's features minus the bad one's."""
    x = np.zeros((len(side), len(columns)))
    for row, (good, bad) in enumerate(side):
        for sign, counted in ((1, good), (-1, bad)):
            for name, value in counted.items():
                if name in columns:
                    x[row, columns[name]] += sign * value
    return x
