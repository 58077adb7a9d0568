"""The base model that TRL's trainers start from: looked at first, loaded when all else is known."""

from __future__ import annotations

from functools import cached_property
from importlib.util import find_spec

import torch

from newllm_lib import console
from newllm_lib.checkpoints import load_model, outline
from newllm_lib.checkpoints.location import BASE
from newllm_lib.data.preferences.encode import with_template
from newllm_lib.data.templates import PLAIN_TURNS
from newllm_lib.device import Device
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.generation.stateful import window
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run, is_complete, staged_directory
from newllm_lib.training.base_needs import BaseNeeds, base_needs
from newllm_lib.training.compile import dtype_of

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Base:
    """A base model for a run.

    Made, it has read the base's small files alone; its weights are downloaded and read when `model` is asked
    for.

    Attributes:
        outline: its architecture and sizes.
        tokenizer: its own, with a chat template and a padding token.
        brought_template: whether it came with a chat template.
    """

    def __init__(self, recipe: Recipe, run: Run, device: Device):
        """
        Raises:
            UsageError: there is no such base, or the recipe cannot be with one.
            NewLLMError: it cannot be read or reached.
        """
        _refuse(recipe, device)
        self.recipe, self.run, self.device = recipe, run, device
        self.outline = outline(str(self._own) if self.is_kept else recipe.base)
        self.brought_template = self.outline.tokenizer.chat_template not in (None, PLAIN_TURNS)
        self.tokenizer = with_template(self.outline.tokenizer)

    @property
    def _own(self):
        return self.run.path / BASE

    @property
    def is_kept(self) -> bool:
        """Whether the run holds the base already as it shall be."""
        return is_complete(self._own)

    @property
    def needs(self) -> BaseNeeds:
        """What training it will need here."""
        return base_needs(self.recipe, self.device, self.outline.model.config, self.outline.parameters)

    def describe(self) -> str:
        """One line: name, parameters, licence, template."""
        licence = f", licence {self.outline.licence}" if self.outline.licence else ""
        if self.outline.location.folder is None and not self.outline.licence:
            licence = ", no licence named on its card"
        template = "its own chat template" if self.brought_template else "no chat template: plain turns"
        return f"{self.recipe.base} ({self.outline.parameters:,} parameters{licence}; {template})"

    @cached_property
    def model(self):
        """The base with its weights."""
        return self.load()

    def load(self):
        """The base with its weights, read anew; quantized if the recipe says so."""
        if self.outline.adapters:
            self.keep()
        place = str(self._own.absolute()) if self.is_kept else self.recipe.base
        recipe, cuda = self.recipe, self.device.torch_device == "cuda"
        half = recipe.lora_rank and cuda  # frozen: no small step is lost
        dtype = _DTYPES[dtype_of(recipe, self.device) if half else "fp32"]
        device = self.device.torch_device if recipe.load_in != "full" else None
        model = load_model(place, dtype=dtype, load_in=recipe.load_in, device=device).model
        if recipe.load_in != "full":
            for layer in model.modules():
                # on some processors bitsandbytes packs 4-bit weights anew, for products without a gradient
                layer.support_avx512bf16_for_cpu = False
            _check_quantized(model, recipe)
        return _named(model, place if self.is_kept else recipe.base)

    def forget_model(self) -> None:
        """Read the weights anew when they are asked for next."""
        self.__dict__.pop("model", None)

    def keep(self, model=None) -> None:
        """Let the run hold the base, unless the hub has it: then a mirror's copy is all that is needed.
        Adapters as a base are added to the weights that they belong to, and the sum is kept.

        Args:
            model: what the base has become, if it is another now.
        """
        from_hub = self.outline.location.folder is None and not self.outline.adapters
        if self.is_kept or (model is None and from_hub):
            return
        if model is None:
            # a sum of half precision would be rounded
            dtype = torch.float32 if self.outline.adapters else "auto"
            model = load_model(self.recipe.base, dtype=dtype).model
            if self.outline.adapters:
                console.say(
                    f"  {self.recipe.base} is adapters: merged into their base, from which this starts"
                )
        with staged_directory(self._own) as staging:
            model.save_pretrained(staging)
            self.tokenizer.save_pretrained(staging)


def check_window(recipe: Recipe, base: Base) -> None:
    """Raise UsageError where rows would be longer than what the base reads at once."""
    size = window(base.outline.model)
    if size is not None and recipe.max_seq_length > size:
        raise UsageError(
            f"{recipe.base} reads at most {size} tokens at once, and {recipe.max_seq_length} were meant: "
            f"give --max_seq_length {size}."
        )


def _named(model, name: str):
    """Let the model say where it came from: PEFT writes it into the adapters' configuration."""
    model.name_or_path = model.config._name_or_path = name
    return model


@torch.no_grad()
def _check_quantized(model, recipe: Recipe) -> None:
    """Raise NewLLMError where bitsandbytes cannot compute with these weights on this device."""
    try:
        model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device))
    except Exception as error:  # a device without kernels, or shapes that they do not take
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise NewLLMError(
            f"--load_in {recipe.load_in}: bitsandbytes cannot compute with {recipe.base} here ({cause}): "
            "leave it out."
        ) from error


def _refuse(recipe: Recipe, device: Device) -> None:
    """Raise UsageError for what cannot be with a base."""
    if recipe.gradient_checkpointing == "offload":
        raise UsageError(
            "--gradient_checkpointing offload is for task train: use auto, on or off with a base."
        )
    if recipe.weights_dtype != "fp32" or recipe.optimizer_in_backward or recipe.carry_state:
        raise UsageError(
            "weights_dtype, optimizer_in_backward and carry_state are for task train: leave them out."
        )
    if recipe.load_in == "full":
        return
    if not recipe.lora_rank:
        raise UsageError(
            f"--load_in {recipe.load_in} freezes the base's weights, so adapters are trained beside them: "
            "give --lora_rank 16."
        )
    if find_spec("bitsandbytes") is None:
        raise UsageError(
            f"--load_in {recipe.load_in} needs bitsandbytes: `pip install bitsandbytes`, or leave it out."
        )
    if recipe.sft_warm_start:
        raise UsageError(
            f"--sft_warm_start trains all weights, and --load_in {recipe.load_in} freezes them: train the "
            "base with task sft first, and name that run with --base."
        )
