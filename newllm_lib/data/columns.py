"""What the columns of dialogues are called."""

from __future__ import annotations

# Columns beside a dialogue's own: a system text, earlier turns, what was thought before the answer.
SYSTEM = ("system", "system_prompt", "system_message", "systemprompt")
HISTORY = ("history",)
CONTEXTS = ("context", "input")  # what stands below a question
ASKED = ("instruction", "prompt", "question", "query", "input", "user", "human")
ANSWERED = ("response", "output", "completion", "answer", "assistant")
# Columns that say whether a whole row is to be learned.
VERDICTS = ("label", "kto_tag", "weight", "loss_weight", "train")
REASONING = ("reasoning_content", "reasoning", "thinking")  # what was thought before the answer
