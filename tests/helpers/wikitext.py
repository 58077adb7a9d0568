"""WikiText as it lies on the hub, with few rows."""

from pathlib import Path

from newllm_lib.data.datasets import REGISTRY
from tests.helpers.texts import paragraphs

ARTICLE = " = Title {0} = \n \n Über the river {0} . \n \n = = Part = = \n \n {1} \n \n"


CARD = (
    "---\nconfigs:\n"
    + "".join(
        f"- config_name: {config}\n  data_files:\n"
        + "".join(f"  - split: {s}\n    path: {config}/{s}-*\n" for s in ("test", "train", "validation"))
        for config in ("wikitext-2-raw-v1", "wikitext-103-raw-v1")
    )
    + "---\n"
)


def wikitext(first: int, count: int) -> str:
    return "".join(ARTICLE.format(i, text) for i, text in enumerate(paragraphs(count, seed=first), first))


def write_wikitext(place: Path) -> None:
    """As the real set: one row a line, blank lines (a space in the original files) as empty rows."""
    import pyarrow
    from pyarrow import parquet

    folder = place / "wikitext-2-raw-v1"
    folder.mkdir(parents=True)
    for split, (first, count) in SPLITS.items():
        lines = wikitext(first, count).splitlines(keepends=True)
        rows = ["" if not line.strip() else line for line in lines]
        table, path = pyarrow.table({"text": rows}), folder / f"{split}-00000-of-00001.parquet"
        parquet.write_table(table, path, row_group_size=50)
    (place / "README.md").write_text(CARD)
    (place / ".commit").write_text(REGISTRY["wikitext"].revision)


SPLITS = {"train": (0, 120), "validation": (1000, 10), "test": (2000, 12)}
