"""Parquet files: their rows a batch at a time, or a row group by itself."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from newllm_lib.data.readers.base import Segment
from newllm_lib.data.schemas import recognised, usual_name
from newllm_lib.errors import NewLLMError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[ParquetFile]:
    """A local file; a failure is one line for the user."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise NewLLMError(
            f"{path} cannot be read as parquet ({str(error).splitlines()[0]}): is it whole?"
        ) from error


def read_parquet(path: Path, columns: frozenset[str] | None = None) -> Iterator[tuple[str, object]]:
    """(where, row) of each row, with those of `columns` that exist (default, and if none does: all)."""
    number = 0
    with open_parquet(path) as file:
        for batch in file.iter_batches(batch_size=1024, columns=_wanted(file, columns)):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row


def columns_beside(
    file: ParquetFile, columns: frozenset[str], numbers: list[int] | None = None
) -> dict[str, int]:
    """Columns that are none of these, with about how many rows hold something in them; none where none is
    known: then all are read.

    Args:
        numbers: of the row groups that count; default: all.
    """
    wanted = _wanted(file, columns)
    filled: Counter[str] = Counter()
    numbers = list(range(file.metadata.num_row_groups)) if numbers is None else numbers
    groups = [file.metadata.row_group(i) for i in numbers]
    for part in (group.column(i) for group in groups for i in range(group.num_columns)):
        name = part.path_in_schema.split(".")[0]
        empty = part.statistics.null_count if part.statistics is not None else 0
        filled[name] = filled[name] + part.num_values - (empty or 0)
    beside = {field.name for field in file.schema_arrow if str(field.type) != "null"} - set(wanted or ())
    return {name: count for name, count in filled.items() if wanted and name in beside and count}


def uncompressed_size(path: Path, columns: frozenset[str]) -> int:
    """About how many bytes these columns hold."""
    with open_parquet(path) as file:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        parts = [group.column(i) for group in groups for i in range(group.num_columns)]
        return sum(
            part.total_uncompressed_size
            for part in parts
            if usual_name(part.path_in_schema.split(".")[0]) in columns
        )


def groups_in(file: ParquetFile, segment: Segment) -> list[int]:
    """The numbers of the row groups whose first column begins in the segment."""
    found = []
    for number in range(file.metadata.num_row_groups):
        column = file.metadata.row_group(number).column(0)
        if (
            segment.begin
            <= min(column.dictionary_page_offset or column.data_page_offset, column.data_page_offset)
            < segment.end
        ):
            found.append(number)
    return found


def read_group(file: ParquetFile, number: int, columns: frozenset[str] | None) -> list[dict]:
    """The rows of one row group, with the columns among `columns` (all of them where there is none)."""
    return file.read_row_group(number, columns=_wanted(file, columns)).to_pylist()


def _wanted(file: ParquetFile, columns: frozenset[str] | None) -> list[str] | None:
    names = file.schema_arrow.names
    if columns is None or columns.isdisjoint(names):
        return None
    wanted = [name for name in names if usual_name(name) in columns]
    return wanted if recognised(tuple(wanted))[0] else None  # else they may lie one level down
