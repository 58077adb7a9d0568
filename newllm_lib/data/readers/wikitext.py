"""WikiText: articles, of which the hub holds a line a row."""

from __future__ import annotations

from collections.abc import Iterator

from newllm_lib.data.readers.base import DataFile
from newllm_lib.data.readers.hub import HubSource
from newllm_lib.data.readers.textfiles import group_lines
from newllm_lib.data.records import Record, RowStats
from newllm_lib.errors import UsageError


class WikiTextSource(HubSource):
    """A record is an article, as the original files have it byte for byte."""

    layout = "article lines"

    def records(self, split: str, stats: RowStats) -> Iterator[Record]:
        stats.begin(f"{self.title} {split}", split, documents="a document an article")
        for article in group_lines(self._lines(split), "articles"):
            stats.accept()
            yield Record(article)
        stats.finish()

    def files(self, split: str) -> list[DataFile] | None:
        return None  # an article may begin in one piece and end in the next

    def _lines(self, split: str) -> Iterator[str]:
        """The files' lines. Blank ones, which hold a space there, are empty rows on the hub."""
        for _, row in self.rows(split):
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise UsageError(f"Data set {self.name} has no text in a column text: name another id.")
            text = row["text"] or " "
            yield text if text.endswith("\n") else text + "\n"
