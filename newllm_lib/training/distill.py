"""Knowledge distillation: a teacher's whole distribution beside the next token (the key `teacher`).

The teacher is a run, a folder with a model, or a hub id; any causal language model that knows the student's
words by the same ids. It reads the same blocks; nothing of it is trained or saved.
"""

from __future__ import annotations

import torch
from torch import nn

from newllm_lib.checkpoints import load_model
from newllm_lib.errors import UsageError
from newllm_lib.generation.stateful import window
from newllm_lib.models import TinyGPT2ForCausalLM
from newllm_lib.ops.distillation import distillation_loss
from newllm_lib.recipe import Recipe

TEMPERATURE = 2.0  # softens both distributions where they are compared


class Teacher:
    """Gives hidden states and a head for blocks of token ids.

    Raises:
        UsageError: other words than the student's, a window that is too short, or a head that is more than a
        matrix.
        NewLLMError: it cannot be loaded.
    """

    def __init__(self, recipe: Recipe, tokenizer, device: torch.device):
        self.share = recipe.distill_weight
        loaded = load_model(recipe.teacher)
        model, own = loaded.model, loaded.tokenizer
        _check_words(recipe.teacher, own, tokenizer)
        self.model = model.to(device).eval().requires_grad_(False)
        longest = window(self.model)
        if longest is not None and longest < recipe.max_seq_length:
            raise UsageError(
                f"Teacher {recipe.teacher} sees {longest} tokens: lower --max_seq_length to that."
            )
        self.head = self.model.get_output_embeddings().weight[: len(own)]
        self.unknown = own.eos_token_id or 0  # what it reads in place of words that only the student has
        self._check_head(recipe.teacher)

    @torch.no_grad()
    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """(batch, time) -> (batch, time, its width)."""
        ids = ids.masked_fill(ids >= self.head.shape[0], self.unknown)
        body = getattr(self.model, self.model.base_model_prefix)
        more = {}
        if isinstance(self.model, TinyGPT2ForCausalLM) and self.model.config.separate_documents:
            from newllm_lib.layers.document import document_starts, positions_in_document

            more = {
                "position_ids": positions_in_document(document_starts(ids, self.model.config.bos_token_id))
            }
        return body(input_ids=ids, use_cache=False, **more).last_hidden_state

    def loss(
        self, student: nn.Module, hidden: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor, tokens=None
    ):
        """The student's loss from its hidden states (batch, time, width); labels are already shifted."""
        head = student.get_output_embeddings().weight
        return distillation_loss(
            hidden, head, self.hidden(ids), self.head, labels, self.share, TEMPERATURE, tokens
        )

    @torch.no_grad()
    def _check_head(self, name: str) -> None:
        ids = torch.arange(1, 5, device=self.head.device).unsqueeze(0)
        logits = self.model(input_ids=ids).logits[..., : self.head.shape[0]].float()
        if not torch.allclose(self.hidden(ids).float() @ self.head.float().T, logits, rtol=1e-2, atol=1e-2):
            raise UsageError(
                f"Teacher {name} changes its logits after its head's matrix: distillation cannot, so use "
                "another."
            )


def _check_words(name: str, own, tokenizer) -> None:
    """The student may know more words (control tokens), but not other ones."""
    theirs, ours = own.get_vocab(), tokenizer.get_vocab()
    other = [word for word, number in theirs.items() if ours.get(word) != number]
    if other:
        raise UsageError(
            f"Teacher {name} has another tokenizer ({len(other):,} of its {len(theirs):,} words differ), and "
            "a student can only learn from it with the same words: train with --tokenizer "
            f"{'gpt2' if name == 'gpt2' else 'FOLDER_OF_THE_TEACHER'}."
        )
