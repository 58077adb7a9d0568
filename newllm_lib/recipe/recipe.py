"""The `Recipe` dataclass: every choice of a run."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from newllm_lib.recipe.files import check_keys, read_yaml
from newllm_lib.recipe.keys import (
    DataKeys,
    DistillKeys,
    KeepingKeys,
    LoraKeys,
    MemoryKeys,
    ModelKeys,
    Phase7Keys,
    PreferenceKeys,
    RunKeys,
    ScaleKeys,
    StartKeys,
    TrainingKeys,
)
from newllm_lib.recipe.values import checked


@dataclass
class Recipe(  # its fields are listed from the last base to the first
    LoraKeys, PreferenceKeys, DistillKeys, MemoryKeys, TrainingKeys, StartKeys, Phase7Keys, ModelKeys, DataKeys, ScaleKeys,
    KeepingKeys, RunKeys,
):  # fmt: skip
    """Every choice of a run. Lengths are in tokens, sizes in channels, batch sizes in sequences per optimizer step."""

    def __post_init__(self):
        self.origin: tuple[str, dict] | None = None  # name and overrides it was loaded with; not part of the record
        for f in fields(self):
            setattr(self, f.name, checked(f, getattr(self, f.name)))

    def differences(self, other: Recipe) -> list[str]:
        """Keys in which the two would be different runs, as `key: this | other`."""
        return [
            f"{f.name}: {getattr(self, f.name)} | {getattr(other, f.name)}"
            for f in fields(self)
            if f.metadata["identity"] and getattr(self, f.name) != getattr(other, f.name)
        ]

    def scaled_learning_rate(self) -> float:
        """The peak learning rate at this batch size, by square-root scaling (the guides' rule)."""
        return self.learning_rate * self.batch_scale()

    def batch_scale(self) -> float:
        """Square root of how much larger the batch is than the one the learning rates were chosen for."""
        if self.learning_rate_batch_size is None:
            return 1.0
        return (self.batch_size / self.learning_rate_batch_size) ** 0.5

    def run_path(self) -> Path:
        """The run's folder: `output_dir`, or `checkpoints/<run name>` below the current folder (on Colab: below the clone)."""
        if self.output_dir:
            return Path(self.output_dir)
        clone = Path(__file__).resolve().parents[2]
        on_colab = "COLAB_RELEASE_TAG" in os.environ and (clone / "colab_bootstrap.sh").is_file()
        return (clone / "checkpoints" if on_colab else Path("checkpoints")) / self.run_name

    def to_yaml(self) -> str:
        import yaml

        return yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, path: Path) -> Recipe:
        """Read the flat record of a run (`recipe.yaml` in its folder)."""
        values = read_yaml(path)
        check_keys(values, str(path), [f.name for f in fields(cls)])
        return cls(**values)
