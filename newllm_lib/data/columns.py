"""What the columns of dialogues are called."""

from __future__ import annotations

# Columns beside a dialogue's own: a system text, earlier turns, what was thought before the answer.
SYSTEM = ("system", "system_prompt", "system_message", "systemprompt")
HISTORY = ("history",)
CONTEXTS = ("context", "input")  # what stands below a question
BELOW_INSTRUCTION = ("question", "query")  # below an instruction these too
ASKED = ("instruction", "prompt", "question", "query", "input", "user", "human")
ANSWERED = ("response", "output", "completion", "answer", "assistant")
# Columns that say whether a whole row is to be learned.
WEIGHTS = ("weight", "loss_weight", "train")
VERDICTS = ("label", "kto_tag", *WEIGHTS)  # beside a text, a label is a class
REASONING = ("reasoning_content", "reasoning", "thinking")  # what was thought before the answer


def contexts_of(asked: str) -> tuple[str, ...]:
    """The columns that stand below what a column asks."""
    more = BELOW_INSTRUCTION if asked == "instruction" else ()
    return (*[name for name in CONTEXTS if name != asked], *more)
