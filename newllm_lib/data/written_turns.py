"""The turns of a dialogue that others have written as one text: with labels, or in a model's marks."""

from __future__ import annotations

import re
from collections.abc import Iterable

from newllm_lib.data.records import ROLE_NAMES
from newllm_lib.data.templates import join_context

# How others write a dialogue as one text: what stands before each turn with its speaker, what may end a turn.
_ENDS = r"</s>|<\|end\|>|<\|endoftext\|>|<｜end▁of▁sentence｜>"
_MARKS = (
    ("ChatML", r"<\|im_start\|> ?(\w+)\n?", r"<\|im_end\|>|<\|endoftext\|>"),
    (
        "Llama's marks",
        r"<\|(?:start_header_id|header_start)\|>(\w+)<\|(?:end_header_id|header_end)\|>\n*",
        r"<\|eot_id\|>|<\|eot\|>|<\|end_of_text\|>",
    ),
    ("Gemma's marks", r"<start_of_turn>(\w+)\n?", r"<end_of_turn>|<eos>"),
    ("<|user|> marks", r"<[|｜](user|human|prompter|assistant|bot|model|system)[|｜]>\n?", _ENDS),
)
# Who speaks, as labels before the turns say it: in small letters, a role each.
_WHO = {
    **dict.fromkeys(
        ("human", "user", "ユーザー", "ユーザ", "人間", "用户", "用戶", "人类", "사용자"), "user"
    ),
    **dict.fromkeys(
        ("assistant", "ai", "bot", "chatbot", "アシスタント", "助手", "助理", "어시스턴트"), "assistant"
    ),
    **dict.fromkeys(("system", "システム", "系统", "系統"), "system"),
}
# Behind ### also Alpaca's; what stands under an input belongs to the instruction above it.
_HEADED = {
    **_WHO,
    **dict.fromkeys(("instruction", "question", "指示", "質問", "指令", "问题"), "user"),
    **dict.fromkeys(("response", "answer", "output", "応答", "回答", "回复"), "assistant"),
    **dict.fromkeys(("input", "入力", "输入"), "input"),
}


def _labels(names: dict[str, str]) -> str:
    return rf"(?i:{'|'.join(sorted(names, key=len, reverse=True))})"


_LABEL = rf"[*<\[]{{0,2}}({_labels(_WHO)})[*>\]]{{0,2}}[:：](?:\*\*)?"
_HEADING = rf"### ?({_labels(_HEADED)}) ?[:：]"
_SPOKEN = {name.upper(): role for name, role in _WHO.items() if name.isascii()}
_LABELS = (
    ("### labels", rf"\s*{_HEADING}", _ENDS),
    ("labels", rf"(?:\A|\n\n)\s*{_LABEL}", _ENDS),
    ("labels", rf"(?:\A|\n)\s*{_LABEL}", _ENDS),
    ("labels", rf"(?:\A|\s+)({'|'.join(_SPOKEN)}):", _ENDS),  # Vicuna's stand in one line
)
_WRITTEN = {
    kinds: tuple(
        (
            name,
            re.compile(turn, re.IGNORECASE if "[|｜]" in turn else 0),
            re.compile(rf"(?:\s*(?:{end}))+\s*\Z"),
        )
        for name, turn, end in kinds
    )
    for kinds in (_MARKS, _LABELS)
}
_LABELLED = re.compile(rf"{_HEADING}|{_LABEL}")
# what may stand before the first turn; no match: no dialogue begins here
_BEGINNING = re.compile(
    r"\s*(?:(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>|<｜begin▁of▁sentence｜>)\s*)?"
    rf"(?=<[|｜]|<start_of_turn>|\[INST\]|{_HEADING}|{_LABEL})"
)
# Alpaca's and Vicuna's texts say first what is to be done: the system's turn
_PREAMBLE = re.compile(
    r"\s*(?P<said>[^\n]{8,400}?)\s+(?=### ?(?:Instruction|指示|指令) ?[:：]|USER: .*ASSISTANT:)", re.DOTALL
)
_INSTRUCTED = re.compile(r"\[INST\]|\[/INST\]")  # Llama 2 and Mistral: user and assistant in turn
_INSTRUCTIONS = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>(.*)\Z", re.DOTALL)


def written_turns(text: str) -> tuple[str, list[tuple[str, str]]] | None:
    """The turns of a dialogue that is written as one text.

    With labels before the turns ("Human:" and "Assistant:", also in Japanese, Chinese and Korean, Alpaca's
    "### Instruction:"), in ChatML, or in the marks of Llama, Mistral, Gemma or Zephyr. The text must begin
    so, and a user and an assistant must speak in it.

    Returns:
        how it is written, in words, and (role or speaker's name, what is said) of each turn; the last one is
        empty where the text ends as the assistant begins. None: it is no such text.
    """
    start = _BEGINNING.match(text)
    said = None
    if start is None and ("### " in text[:600] or "USER: " in text[:600]):
        start = said = _PREAMBLE.match(text)
    if start is None:
        return None
    body = text[start.end() :]
    if body.startswith("[INST]"):
        return "[INST] marks", _instructed(body)
    kinds = _WRITTEN[_LABELS] if _LABELLED.match(body) else _WRITTEN[_MARKS] if body[:1] == "<" else ()
    for name, turn, end in kinds:
        before, *parts = turn.split(body)
        if before.strip():
            continue
        turns = [
            (_who(who), end.sub("", part).strip()) for who, part in zip(parts[::2], parts[1::2], strict=True)
        ]
        if {"user", "assistant"} <= {who for who, _ in turns}:
            return name, ([("system", said["said"])] if said else []) + _with_inputs(turns)
    return None


def _who(name: str) -> str:
    """The role of a label or mark; the name itself where it is none that is known."""
    name = name.lower()
    return _HEADED.get(name) or ROLE_NAMES.get(name, name)


def _with_inputs(turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Turns with what stands under "### Input:" at the end of the instruction above it."""
    joined: list[tuple[str, str]] = []
    for who, said in turns:
        if who == "input" and joined:
            joined[-1] = (joined[-1][0], join_context(joined[-1][1], said))
        else:
            joined.append((who, said))
    return joined


def _instructed(text: str) -> list[tuple[str, str]]:
    turns = []
    for i, part in enumerate(_INSTRUCTED.split(text)[1:]):
        said = part.replace("<s>", "").replace("</s>", "")
        if i == 0 and (match := _INSTRUCTIONS.match(said)):
            turns.append(("system", match[1].strip()))
            said = match[2]
        turns.append((("user", "assistant")[i % 2], said.strip()))
    return turns


def labelled_roles(texts: Iterable[str]) -> list[tuple[str, str]] | None:
    """(role, what is said) where each text begins with a label that says who speaks; None: one does not."""
    found = []
    for text in texts:
        match = _LABELLED.match(text.lstrip())
        if match is None or not (match[2] or match[1]):
            return None
        found.append((_who(match[2] or match[1]), text.lstrip()[match.end() :].strip()))
    return found
