"""Drive is there already: a folder that outlives the machine."""

from pathlib import Path


def mount(path: str) -> None:
    (Path(path) / "MyDrive").mkdir(parents=True, exist_ok=True)
