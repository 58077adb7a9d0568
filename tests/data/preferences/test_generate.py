"""Japanese pairs: unique, correct, well formed, apart by fact, and not to be told by length or first word."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from newllm_lib.data.preferences import generate, most_pairs, shortcuts
from newllm_lib.data.preferences.facts import ASKED, FACETS, OPENERS, facts
from newllm_lib.data.preferences.generate import KINDS
from newllm_lib.errors import UsageError


@pytest.fixture(scope="module")
def pairs():
    return generate()


def split(pairs, name):
    return [pair for pair in pairs if pair.split == name]


def facet_of(pair):
    """Which facet the prompt asks for."""
    fact = next(f for f in facts() if f.term == pair.group)
    return fact, next(
        facet
        for facet in FACETS
        for form in ASKED[facet].questions
        if form.format(term=fact.term, field=fact.field) == pair.question()
    )


def test_over_a_thousand_different_prompts_from_facts_and_question_forms(pairs):
    assert len({pair.prompt for pair in pairs}) == len(pairs) == most_pairs() >= 1500
    assert len(split(pairs, "train")) >= 1000 and len(split(pairs, "evaluation")) >= 300
    assert len(facts()) >= 100 and len(
        {(f.term, f.what, f.use, f.example, f.caution) for f in facts()}
    ) == len(facts())
    assert sum(len(facet.questions) for facet in ASKED.values()) >= 20


def test_the_chosen_answer_says_what_was_asked_of_the_right_term(pairs):
    for pair in pairs:
        fact, facet = facet_of(pair)
        assert fact.term in pair.chosen and getattr(fact, facet) in pair.chosen
        assert sum(getattr(fact, other) in pair.chosen for other in FACETS) == 1


def test_answers_are_well_formed(pairs):
    for pair in pairs:
        for answer in (pair.chosen, pair.rejected):
            assert answer.endswith("。") and not re.search(r"[、。]{2}|[{}|\t\n]|。です", answer), answer
        assert pair.question()[-1] in "。？" and pair.chosen.count("。") == 1


def test_rejected_answers_are_what_their_kind_says(pairs):
    terms = [fact.term for fact in facts()]
    clauses = {getattr(fact, facet): fact for fact in facts() for facet in FACETS}
    for pair in pairs:
        fact, facet = facet_of(pair)
        said = [clause for clause in clauses if clause in pair.rejected]
        assert getattr(fact, facet) not in pair.rejected
        if pair.kind == "off_topic":  # true, about another term
            other = clauses[max(said, key=len)]
            assert other != fact and other.term in pair.rejected
        elif pair.kind == "wrong":  # said of this term, true of a far one
            other = clauses[max(said, key=len)]
            assert fact.term in pair.rejected and other.far_from(fact) and facet != "caution"
        else:
            assert not said and any(term in pair.rejected for term in terms)
        if pair.kind == "repetitive":
            assert pair.rejected.count(fact.term) >= 2


def test_every_kind_is_there_often_in_both_splits(pairs):
    for name in ("train", "evaluation"):
        counts = Counter(pair.kind for pair in split(pairs, name))
        assert set(counts) == set(KINDS) and min(counts.values()) > 0.1 * sum(counts.values())


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_no_fact_is_in_both_splits_whatever_the_seed(seed):
    found = generate(seed=seed)
    train, held_out = split(found, "train"), split(found, "evaluation")
    assert not {p.group for p in train} & {p.group for p in held_out}
    unseen = [clause for f in facts() if f.held_out for clause in (f.what, f.use, f.example, f.caution)]
    assert not any(clause in side for p in train for side in (p.chosen, p.rejected) for clause in unseen)
    assert {f.term for f in facts() if f.held_out} == {p.group for p in held_out}


@pytest.mark.parametrize("seed", [0, 1])
def test_neither_length_nor_the_first_words_tell_the_better_answer(seed):
    """The whole of both splits, and the thousand pairs that the recipe trains on."""
    found = generate(seed=seed)
    score = shortcuts(split(found, "train")[:1000], split(found, "evaluation"))
    assert 0.4 < score["length"] < 0.6
    assert 0.4 < score["first_word"] < 0.6 and 0.4 < score["first_two_words"] < 0.6
    assert 0.5 < score["bag_of_words"] < 1.0  # vague, curt and repetitive answers have words of their own


def test_the_shortcut_classifiers_find_shortcuts_that_are_there(pairs):
    long = [p._replace(rejected=p.rejected[:8]) for p in pairs]
    begun = [p._replace(rejected="Well " + p.rejected) for p in pairs]
    worded = [p._replace(chosen=p.chosen + " Yes", rejected=p.rejected + " No") for p in pairs]
    for changed, name in ((long, "length"), (begun, "first_word"), (worded, "bag_of_words")):
        assert shortcuts(split(changed, "train")[:300], split(changed, "evaluation")[:200])[name] > 0.95


def test_openers_are_drawn_alike_for_both_sides(pairs):
    for opener in filter(None, OPENERS):
        good, bad = (
            sum(getattr(p, side).startswith(opener) for p in pairs) for side in ("chosen", "rejected")
        )
        assert abs(good - bad) < 0.25 * good


def test_the_same_seed_gives_the_same_pairs_and_a_count_their_beginning(pairs):
    assert generate(seed=0) == pairs and generate(50, seed=0) == pairs[:50]
    assert generate(seed=1) != pairs


@pytest.mark.parametrize("count", [0, -1, 10**6])
def test_a_count_that_cannot_be_is_one_line(count):
    with pytest.raises(UsageError, match="between 1 and"):
        generate(count)


def test_the_command_writes_them_as_jsonl(tmp_path, capsys):
    from newllm_lib.cli import main

    path = tmp_path / "pairs.jsonl"
    assert (
        main(["data", "preferences", "--count", "120", "--seed", "3", "--output", str(path), "--json"]) == 0
    )
    result = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == result["pairs"] == 120 and set(result["shortcuts"]) >= {
        "length",
        "first_word",
        "bag_of_words",
    }
    assert all({"prompt", "chosen", "rejected", "kind", "group", "split"} <= row.keys() for row in rows)
    first = path.read_bytes()
    assert main(["data", "preferences", "--count", "120", "--seed", "3", "--output", str(path)]) == 0
    assert path.read_bytes() == first and "held-out pairs" in capsys.readouterr().out
