"""Training by a reward of one's own: `run` is its order, `grpo_task` makes TRL's trainer, `reward` is what
answers are worth: a Python function that the user named, or a reward model."""
