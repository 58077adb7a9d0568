"""Kinds of rows that stand for dialogues, each with the turns that it means, and rows that are left out."""

from __future__ import annotations

import json

from tests.helpers.cases import answered, asked

RULE = "Speak like a clerk."
U, A, S = "user", "assistant", "system"


def said(role, content, **more):
    return {"role": role, "content": content, **more}


def talk(i, system=None, before=()):
    """The turns that most kinds of rows here stand for."""
    first = [(S, system, False)] if system else []
    return [*first, *before, (U, asked(i), False), (A, answered(i), True)]


EARLIER = [(U, "Are you there?", False), (A, "Yes, at the desk.", True)]
CALL = '<tool_call>{"name": "scales", "arguments": {"shelf": 4}}</tool_call>'


# a kind of row: i -> (row, turns)
KINDS = {
    "Alpaca with system and history": lambda i: (
        {
            "instruction": asked(i),
            "input": "",
            "output": answered(i),
            "system": RULE,
            "history": [["Are you there?", "Yes, at the desk."]],
        },
        talk(i, RULE, EARLIER),
    ),
    "system and history that are empty": lambda i: (
        {
            "instruction": asked(i),
            "output": answered(i),
            "system": (None, "")[i % 2],
            "history": ([], None)[i % 2],
        },
        talk(i),
    ),
    "Dolly with system": lambda i: (
        {"instruction": asked(i), "context": "", "response": answered(i), "system": RULE},
        talk(i, RULE),
    ),
    "completion with a system prompt": lambda i: (
        {"prompt": asked(i), "completion": answered(i), "system_prompt": RULE},
        talk(i, RULE),
    ),
    "messages with a system column": lambda i: (
        {"messages": [said(U, asked(i)), said(A, answered(i))], "system": RULE},
        talk(i, RULE),
    ),
    "Orca": lambda i: (
        {"id": f"flan.{i}", "system_prompt": RULE, "question": asked(i), "response": answered(i)},
        talk(i, RULE),
    ),
    "question and answer": lambda i: ({"question": asked(i), "answer": answered(i)}, talk(i)),
    "input and output": lambda i: ({"input": asked(i), "output": answered(i)}, talk(i)),
    "a text prompt with a message as answer": lambda i: (
        {"prompt": asked(i), "completion": [said(A, answered(i))]},
        talk(i),
    ),
    "ShareGPT": lambda i: (
        {
            "conversations": [
                {"from": "system", "value": RULE},
                {"from": "human", "value": asked(i)},
                {"from": ("gpt", "chatgpt", "bard", "bing", "bot", "model")[i % 6], "value": answered(i)},
            ]
        },
        talk(i, RULE),
    ),
    "ShareGPT with a system column": lambda i: (
        {
            "system": RULE,
            "conversations": [{"from": "Human", "value": asked(i)}, {"from": "GPT", "value": answered(i)}],
        },
        talk(i, RULE),
    ),
    "capital letters and developer": lambda i: (
        {"messages": [said("Developer", RULE), said("USER", asked(i)), said("Assistant", answered(i))]},
        talk(i, RULE),
    ),
    "a line that is a list": lambda i: ([said(U, asked(i)), said(A, answered(i))], talk(i)),
    "speakers as keys": lambda i: (
        {"conversation": [{"human": asked(i), "assistant": answered(i)}]},
        talk(i),
    ),
    "Gemini": lambda i: (
        {
            "contents": [
                {"role": "user", "parts": [{"text": asked(i)}]},
                {"role": "model", "parts": [{"text": answered(i)}]},
            ]
        },
        talk(i),
    ),
    "content in parts": lambda i: (
        {
            "messages": [
                said(U, [{"type": "text", "text": asked(i)}]),
                said(
                    A, [{"type": "text", "text": answered(i)[:9]}, {"type": "text", "text": answered(i)[9:]}]
                ),
            ]
        },
        talk(i),
    ),
    "messages as JSON in a table's cell": lambda i: (
        {"messages": json.dumps([said(U, asked(i)), said(A, answered(i))])},
        talk(i),
    ),
    "an empty system message": lambda i: (
        {"messages": [said(S, ("", None, "  ")[i % 3]), said(U, asked(i)), said(A, answered(i))]},
        talk(i),
    ),
    "no input, as pandas writes it": lambda i: (
        {"instruction": asked(i), "input": float("nan"), "output": answered(i)},
        talk(i),
    ),
    "two sets put together": lambda i: (
        {"messages": None, "instruction": asked(i), "response": None, "output": answered(i), "text": None},
        talk(i),
    ),
    "labels in the prompt": lambda i: (
        {"prompt": f"\n\nHuman: {asked(i)}\n\nAssistant:", "completion": f" {answered(i)}"},
        talk(i),
    ),
    "labels, several turns, the prompt repeated": lambda i: (
        {
            "prompt": (
                text
                := f"Human: Are you there?\n\nAssistant: Yes, at the desk.\n\nHuman: {asked(i)}\n\nAssistant:"
            ),
            "completion": f"{text} {answered(i)}",
        },
        talk(i, before=EARLIER),
    ),
    "ChatML in the prompt": lambda i: (
        {
            "prompt": f"<|im_start|>system\n{RULE}<|im_end|>\n<|im_start|>user\n{asked(i)}<|im_end|>\n"
            "<|im_start|>assistant\n",
            "completion": f"{answered(i)}<|im_end|>",
        },
        talk(i, RULE),
    ),
    "Llama 3's marks as text": lambda i: (
        {
            "text": f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{asked(i)}<|eot_id|>"
            f"<|start_header_id|>assistant<|end_header_id|>\n\n{answered(i)}<|eot_id|>"
        },
        talk(i),
    ),
    "Llama 2's marks as text": lambda i: (
        {"text": f"<s>[INST] <<SYS>>\n{RULE}\n<</SYS>>\n\n{asked(i)} [/INST] {answered(i)} </s>"},
        talk(i, RULE),
    ),
    "### labels as text": lambda i: ({"text": f"### Human: {asked(i)}### Assistant: {answered(i)}"}, talk(i)),
    "Vicuna's labels": lambda i: (
        {"prompt": f"USER: {asked(i)} ASSISTANT:", "response": answered(i)},
        talk(i),
    ),
    "a prompt repeated in its answer": lambda i: (
        {"prompt": asked(i), "completion": f"{asked(i)} {answered(i)}"},
        talk(i),
    ),
    "tool calls": lambda i: (
        {
            "messages": [
                said(U, asked(i)),
                said(A, None, tool_calls=[{"function": {"name": "scales", "arguments": '{"shelf": 4}'}}]),
                said("tool", "17 lb", tool_call_id="c0"),
                said(A, answered(i)),
            ]
        },
        [(U, asked(i), False), (A, CALL, True), (S, "17 lb", False), (A, answered(i), True)],
    ),
    "a function's call and what was observed": lambda i: (
        {
            "conversations": [
                {"from": "human", "value": asked(i)},
                {"from": "function_call", "value": CALL},
                {"from": "observation", "value": "17 lb"},
                {"from": "gpt", "value": answered(i)},
            ]
        },
        [(U, asked(i), False), (A, CALL, True), (S, "17 lb", False), (A, answered(i), True)],
    ),
    "weights of messages": lambda i: (
        {
            "messages": [
                said(U, "Make something up."),
                said(
                    A, f"Shelf {i} floats.", **({"weight": 0}, {"train": False}, {"loss_weight": 0.0})[i % 3]
                ),
                said(U, asked(i)),
                said(A, answered(i), **({"weight": 1}, {"train": True}, {})[i % 3]),
            ]
        },
        [(U, "Make something up.", False), (A, f"Shelf {i} floats.", False), *talk(i)],
    ),
    "what was thought before": lambda i: (
        {"question": asked(i), "reasoning_content": "Scales first.", "answer": answered(i)},
        [(U, asked(i), False), (A, f"<think>\nScales first.\n</think>\n\n{answered(i)}", True)],
    ),
}


ALPACA = "Below is an instruction that describes a task."
VICUNA = "A chat between a curious user and an assistant."
# Neighbours of these: other names, labels, marks and nestings of the same.
NEIGHBOURS = {
    "columns in capitals": lambda i: (
        {"System": RULE, "Question": asked(i), "Answer": answered(i)},
        talk(i, RULE),
    ),
    "columns in Japanese": lambda i: ({"質問": asked(i), "回答": answered(i)}, talk(i)),
    "problem and solution": lambda i: ({"problem": asked(i), "solution": answered(i)}, talk(i)),
    "a dialogue under another name": lambda i: ({"chat": [said(U, asked(i)), said(A, answered(i))]}, talk(i)),
    "turns one level down": lambda i: (
        {"conversation": {"messages": [said(U, asked(i)), said(A, answered(i))]}},
        talk(i),
    ),
    "a list for each key": lambda i: (
        {"messages": {"role": [U, A], "content": [asked(i), answered(i)]}},
        talk(i),
    ),
    "LangChain's types": lambda i: (
        {"messages": [{"type": "human", "content": asked(i)}, {"type": "ai", "content": answered(i)}]},
        talk(i),
    ),
    "roles in Japanese": lambda i: (
        {"messages": [said("ユーザー", asked(i)), said("アシスタント", answered(i))]},
        talk(i),
    ),
    "parts with a value": lambda i: (
        {"messages": [said(U, [{"type": "text", "value": asked(i)}]), said(A, answered(i))]},
        talk(i),
    ),
    "SQuAD's answers": lambda i: (
        {"question": asked(i), "answers": {"text": [answered(i)], "answer_start": [0]}},
        talk(i),
    ),
    "no input": lambda i: ({"instruction": asked(i), "input": "<noinput>", "output": answered(i)}, talk(i)),
    "a weight as text": lambda i: (
        {
            "messages": [
                said(U, "Lie."),
                said(A, f"Fog {i}.", weight="0"),
                *[said(U, asked(i)), said(A, answered(i))],
            ]
        },
        [(U, "Lie.", False), (A, f"Fog {i}.", False), *talk(i)],
    ),
    "a verdict as text": lambda i: (
        {"prompt": asked(i), "completion": answered(i), "label": "True"},
        talk(i),
    ),
    "labels in Japanese": lambda i: ({"text": f"ユーザー：{asked(i)}\nアシスタント：{answered(i)}"}, talk(i)),
    "labels in Chinese": lambda i: (
        {"prompt": f"用户：{asked(i)}\n助手：", "completion": answered(i)},
        talk(i),
    ),
    "labels in Markdown": lambda i: (
        {"text": f"**Human:** {asked(i)}\n\n**Assistant:** {answered(i)}"},
        talk(i),
    ),
    "Human and AI": lambda i: ({"text": f"Human: {asked(i)}\nAI: {answered(i)}"}, talk(i)),
    "labels in the turns": lambda i: (
        {"messages": [said(U, f"Human: {asked(i)}"), said(A, f"Assistant: {answered(i)}")]},
        talk(i),
    ),
    "Alpaca's text": lambda i: (
        {"text": f"{ALPACA}\n\n### Instruction:\n{asked(i)}\n\n### Response:\n{answered(i)}"},
        talk(i, ALPACA),
    ),
    "Alpaca's text with an input": lambda i: (
        {"text": f"### 指示:\nLook it up.\n\n### 入力:\n{asked(i)}\n\n### 応答:\n{answered(i)}"},
        [(U, f"Look it up.\n\n{asked(i)}", False), (A, answered(i), True)],
    ),
    "Vicuna's text": lambda i: (
        {"text": f"{VICUNA} USER: {asked(i)} ASSISTANT: {answered(i)}</s>"},
        talk(i, VICUNA),
    ),
    "DeepSeek's marks": lambda i: (
        {"text": f"<｜User｜>{asked(i)}<｜Assistant｜>{answered(i)}<｜end▁of▁sentence｜>"},
        talk(i),
    ),
    "Open Assistant's marks": lambda i: (
        {"text": f"<|prompter|>{asked(i)}<|endoftext|><|assistant|>{answered(i)}<|endoftext|>"},
        talk(i),
    ),
    "marks in prompt and answer": lambda i: (
        {
            "prompt": f"<|im_start|>user\n{asked(i)}<|im_end|>\n",
            "completion": f"<|im_start|>assistant\n{answered(i)}<|im_end|>",
        },
        talk(i),
    ),
    "a token that ends the answer": lambda i: (
        {"instruction": asked(i), "output": f"{answered(i)}</s>"},
        talk(i),
    ),
    "two columns below an instruction": lambda i: (
        {"instruction": "Count.", "context": "In pounds.", "input": asked(i), "output": answered(i)},
        [(U, f"Count.\n\nIn pounds.\n\n{asked(i)}", False), (A, answered(i), True)],
    ),
    "an instruction above a question": lambda i: (
        {"instruction": "Answer in pounds.", "question": asked(i), "answer": answered(i)},
        [(U, f"Answer in pounds.\n\n{asked(i)}", False), (A, answered(i), True)],
    ),
    "XTuner": lambda i: (
        {"conversation": [{"output": answered(i), "input": asked(i), "system": RULE}]},
        talk(i, RULE),
    ),
    "a system text in parts": lambda i: (
        {"system": [{"type": "text", "text": RULE}], "messages": [said(U, asked(i)), said(A, answered(i))]},
        talk(i, RULE),
    ),
    "Anthropic's thoughts": lambda i: (
        {
            "messages": [
                said(U, asked(i)),
                said(A, [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": answered(i)}]),
            ]
        },
        [(U, asked(i), False), (A, f"<think>\nHm.\n</think>\n\n{answered(i)}", True)],
    ),
    "Anthropic's tools": lambda i: (
        {
            "messages": [
                said(U, asked(i)),
                said(A, [{"type": "tool_use", "id": "c0", "name": "scales", "input": {"shelf": 4}}]),
                said(U, [{"type": "tool_result", "tool_use_id": "c0", "content": "17 lb"}]),
                said(A, answered(i)),
            ]
        },
        [(U, asked(i), False), (A, CALL, True), (S, "17 lb", False), (A, answered(i), True)],
    ),
    "not trainable": lambda i: (
        {
            "messages": [
                said(U, "Lie."),
                said(A, f"Mist {i}.", trainable=False),
                *[said(U, asked(i)), said(A, answered(i))],
            ]
        },
        [(U, "Lie.", False), (A, f"Mist {i}.", False), *talk(i)],
    ),
    "a row one level down beside a label": lambda i: (
        {"row": {"prompt": asked(i), "completion": answered(i)}, "label": True},
        talk(i),
    ),
    "prompt and generation": lambda i: ({"prompt": asked(i), "generation": answered(i)}, talk(i)),
    "columns in German": lambda i: ({"Frage": asked(i), "Antwort": answered(i)}, talk(i)),
}

LEFT_OUT = [
    ({}, "no column messages or instruction"),
    ({"text": None}, "text is of type NoneType"),
    ({"text": float("nan")}, "text is of type float"),
    ({"instruction": asked(0), "output": None}, "output is of type NoneType"),
    ({"messages": [said(U, asked(0)), said(A, "")]}, "an empty message"),
    ({"messages": [said(U, asked(0)), said(A, None)]}, "content is of type NoneType"),
    ({"prompt": asked(0), "completion": "Fog.", "label": False}, "label is false"),
    ({"instruction": asked(0), "output": "Fog.", "weight": 0}, "weight is 0"),
    ({"conversations": [{"from": "human", "value": "a"}], "kto_tag": "false"}, "kto_tag is false"),
    ({"prompt": asked(0), "completion": "Fog.", "label": 0}, "label is 0"),
    ({"prompt": asked(0), "completion": "Fog.", "label": "undesirable"}, "label is undesirable"),
    ({"prompt": asked(0), "completion": "Fog.", "weight": "0.0"}, "weight is 0.0"),
    ({"text": "Fog.", "weight": 0}, "weight is 0"),
    ({"text": "Fog.", "train": False}, "train is false"),
]
