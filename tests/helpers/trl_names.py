"""Every name of TRL, PEFT and the Trainer that preference training relies on. Run as a script it prints what
is missing.

python tests/helpers/trl_names.py          (exit code 1 if something is)
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import fields

# of trl.DPOConfig: what `trl_arguments.trainer_arguments`, `trl_run`, `dpo.dpo_config` and the benchmark give
# it
CONFIG = {
    "output_dir",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_grad_norm",
    "bf16",
    "fp16",
    "use_cpu",
    "seed",
    "data_seed",
    "disable_tqdm",
    "logging_nan_inf_filter",
    "logging_strategy",
    "eval_strategy",
    "save_strategy",
    "save_total_limit",
    "report_to",
    "train_sampling_strategy",
    "run_name",
    "dataloader_pin_memory",
    "remove_unused_columns",
    "beta",
    "loss_type",
    "max_length",
    "precompute_ref_log_probs",
    "disable_dropout",
    "learning_rate",
    "warmup_steps",
    "logging_steps",
}
# of trl.SFTConfig, beside what both take: what `training/sft/sft_task.py` gives it
SFT_CONFIG = {"neftune_noise_alpha", "max_length", "dataset_kwargs"}
SFT_TRAINER = {
    "model",
    "args",
    "data_collator",
    "train_dataset",
    "processing_class",
    "callbacks",
    "peft_config",
}
PACKED = {"input_ids", "position_ids", "labels"}  # what its collator makes of several dialogues in a row
EITHER_OF_CONFIG = {("gradient_checkpointing", "activation_checkpointing")}
TRAINER = {  # arguments of trl.DPOTrainer
    "model",
    "ref_model",
    "args",
    "train_dataset",
    "processing_class",
    "callbacks",
    "peft_config",
}
METHODS = {  # of trl.DPOTrainer: called
    "train",
    "log",
    "save_model",
    "_save_checkpoint",  # replaced: a save is tried again
    "add_callback",
    "remove_callback",
}
ATTRIBUTES = {  # of a DPOTrainer: read or set once it is made
    "model",
    "accelerator",
    "state",
    "train_dataset",
    "optimizer",
    "lr_scheduler",
    "ref_model",
    "precompute_ref_logps",
}
# of the trainers that `training/trl/trainers.py` finds: what `training/preferences` and `training/grpo`
# give their configurations, beside what all take, and their constructors
OTHERS = {
    "KTO": ({"beta", "max_length", "disable_dropout"}, {"ref_model"}),
    "ORPO": ({"beta", "max_length", "disable_dropout"}, set()),
    "Reward": ({"max_length", "disable_dropout"}, set()),
    "GRPO": (
        {"beta", "num_generations", "max_completion_length", "generation_kwargs", "shuffle_dataset"},
        {"reward_funcs"},
    ),
}
OTHER_TRAINERS = {"model", "args", "train_dataset", "processing_class", "peft_config"}
COLLATED = {"input_ids", "attention_mask", "completion_mask", "ref_chosen_logps", "ref_rejected_logps"}
LORA = {"r", "lora_alpha", "lora_dropout", "target_modules", "task_type", "fan_in_fan_out"}
ADAPTED = {"disable_adapter", "merge_and_unload", "get_base_model", "save_pretrained", "from_pretrained"}


def missing() -> list[str]:
    """What is not there any more, each as `library.thing.name`."""
    import peft
    import trl
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    known = {f.name for f in fields(trl.DPOConfig)}
    found = [f"trl.DPOConfig.{name}" for name in sorted(CONFIG - known)]
    found += [f"trl.DPOConfig.{' or '.join(names)}" for names in EITHER_OF_CONFIG if not known & set(names)]
    found += _lacking("trl.DPOTrainer(…)", trl.DPOTrainer.__init__, TRAINER)
    found += [f"trl.DPOTrainer.{name}" for name in sorted(METHODS) if not hasattr(trl.DPOTrainer, name)]
    made = _assigned(trl.DPOTrainer)
    found += [f"trl.DPOTrainer().{name}" for name in sorted(ATTRIBUTES - made)]
    found += [f"peft.LoraConfig.{name}" for name in sorted(LORA - {f.name for f in fields(peft.LoraConfig)})]
    model = {*dir(peft.PeftModel), *dir(peft.LoraModel)}  # a PeftModel passes on what its tuner knows
    found += [f"peft.PeftModel.{name}" for name in sorted(ADAPTED - model)]
    found += _lacking(
        "peft.PeftModel.save_pretrained(…)", peft.PeftModel.save_pretrained, {"save_embedding_layers"}
    )
    row = {
        "prompt_ids": [1],
        "chosen_ids": [2, 3],
        "rejected_ids": [4],
        "ref_chosen_logps": -1.0,
        "ref_rejected_logps": -2.0,
    }
    batch = DataCollatorForPreference(pad_token_id=0)([row])
    found += _missing_of_sft() + _missing_of_others()
    return found + [f"trl's collated {name}" for name in sorted(COLLATED - set(batch))]


def _missing_of_sft() -> list[str]:
    import trl
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    known, ours = {f.name for f in fields(trl.SFTConfig)}, {"beta", "loss_type", "precompute_ref_log_probs"}
    common = CONFIG & {f.name for f in fields(trl.DPOConfig)}  # else it is said already
    wanted = SFT_CONFIG | (common - ours - {"disable_dropout"})
    found = [f"trl.SFTConfig.{name}" for name in sorted(wanted - known)]
    found += _lacking("trl.SFTTrainer(…)", trl.SFTTrainer.__init__, SFT_TRAINER)
    row = {"input_ids": [1, 2, 3, 4], "labels": [-100, 2, -100, 4], "seq_lengths": [2, 2]}
    batch = DataCollatorForLanguageModeling(0, padding_free=True)([row])
    found += [f"trl's packed {name}" for name in sorted(PACKED - set(batch))]
    apart = "position_ids" in batch and batch["position_ids"].tolist() == [[0, 1, 0, 1]]
    return found + ([] if apart else ["trl's packed positions from 0 on"])


def _missing_of_others() -> list[str]:
    import trl

    from newllm_lib.training.trl.trainers import kto_is_stable, trainer_classes

    of_dpo = {"beta", "loss_type", "precompute_ref_log_probs", "max_length", "disable_dropout"}
    common = (CONFIG - of_dpo) & {f.name for f in fields(trl.DPOConfig)}  # else it is said already
    found = []
    for name, (own, arguments) in OTHERS.items():
        config, trainer = trainer_classes(name)
        known = {f.name for f in fields(config)}
        found += [f"{config.__module__}.{name}Config.{key}" for key in sorted((own | common) - known)]
        found += _lacking(f"{name}Trainer(…)", trainer.__init__, OTHER_TRAINERS | arguments)
    kto = _assigned(trainer_classes("KTO")[1])
    flags = ("precompute_ref_logps",) if kto_is_stable() else ("_precomputed_train_ref_log_probs",)
    return found + [f"KTOTrainer().{flag}" for flag in flags if flag not in kto]


def _assigned(kind: type) -> set[str]:
    """The names that a class and its bases give their instances, `self.name = …`."""
    sources = (
        inspect.getsource(c) for c in kind.__mro__ if c.__module__.startswith(("trl.", "transformers."))
    )
    return {name for source in sources for name in re.findall(r"self\.(\w+)(?=[^\n=]* = )", source)}


def _lacking(what: str, function, names: set[str]) -> list[str]:
    parameters = inspect.signature(function).parameters
    return [f"{what} {name}" for name in sorted(names - set(parameters))]


if __name__ == "__main__":
    from importlib import metadata

    print(
        ", ".join(f"{name} {metadata.version(name)}" for name in ("trl", "peft", "transformers", "datasets"))
    )
    for name in (gone := missing()):
        print(f"missing: {name}")
    sys.exit(bool(gone))
