"""One file to take home: a run's best model with tokenizer, recipe, curves and log."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

from newllm_lib.colab.environment import on_colab
from newllm_lib.console import say
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.runs import Run, is_complete, staged_file

_BESIDE = ("recipe.yaml", "metrics.jsonl", "curves.png", "train.log")


def download(run: Run, extra: Sequence[str | Path] = ()) -> Path:
    """Make `<run>.zip` beside the run's folder and, in Colab, hand it to the browser; returns the file.

    Args:
        extra: further files to put in, such as a comparison's.

    Raises:
        NewLLMError: the run has no whole model yet, or the disk is full.
        UsageError: a file of another stands there.
    """
    archive = bundle(run, extra)
    say(
        f"{archive} ({archive.stat().st_size / 2**20:,.1f} MiB): unpack it and load {run.name}/best with "
        "transformers"
    )
    if on_colab():
        from google.colab import files

        files.download(str(archive))
    return archive


def _refuse_another(archive: Path, run: Run) -> None:
    """Raise UsageError where a file that is no zip of this run would be replaced."""
    if not os.path.lexists(archive):
        return
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as before:
            if {name.partition("/")[0] for name in before.namelist()} == {run.name}:
                return
    raise UsageError(
        f"{archive} is there and is no zip of {run.name}: it stays. Move it away, then download."
    )


def bundle(run: Run, extra: Sequence[str | Path] = ()) -> Path:
    """Write the zip under a temporary name, then rename it. Arguments and errors as for `download`."""
    model = next((folder for folder in (run.best, run.last) if is_complete(folder)), None)
    if model is None:
        raise NewLLMError(
            f"{run.name} has no saved model yet: let it train until its first evaluation, then download."
        )
    parts = [p for p in sorted(model.rglob("*")) if p.is_file()] + [
        run.path / n for n in _BESIDE if (run.path / n).is_file()
    ]
    archive = run.path.absolute().parent / f"{run.name}.zip"
    _refuse_another(archive, run)
    # Weights do not compress; level 1 is enough for the text.
    with (
        staged_file(archive, durable=False) as staging,
        zipfile.ZipFile(staging, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out,
    ):
        for part in parts:
            name = Path(run.name) / part.relative_to(run.path)
            if model is run.last:
                name = Path(*(("best" if p == "last" else p) for p in name.parts))
            out.write(part, name, zipfile.ZIP_STORED if part.suffix == ".safetensors" else None)
        for path in map(Path, extra):
            out.write(path, Path(run.name) / path.name)
    return archive
