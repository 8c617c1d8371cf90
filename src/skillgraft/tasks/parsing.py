"""Check the records of a file or of the Hub, and turn the records into examples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from skillgraft.config.schema import Columns, TaskConfig
from skillgraft.runtime.errors import InputError
from skillgraft.tasks.readers import Record
from skillgraft.tasks.rows import Row, is_pair


def parse_label(value: Any, names: Sequence[str], rename: dict[str, str], where: str) -> str:
    """Return the task's name of a record's label, given as a name or as an index into `names`.

    `names` are the label names of the source, `rename` maps them to the task's names, and `where` says
    in an error which record is wrong. Labels are matched by name, since the order differs by source.
    """
    if isinstance(value, str) and value not in names and re.fullmatch(r"\s*[0-9]{1,9}\s*", value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < len(names):
            raise InputError(
                f"{where}: label {value}: expected 0 to {len(names) - 1} ({list(names)})"
            )
        value = names[value]
    if not isinstance(value, str) or (value not in names and value not in rename):
        raise InputError(f"{where}: label {value!r}: expected one of {list(names)}")
    return rename.get(value, value)


def required(record: dict[str, Any], column: str, where: str) -> Any:
    """Return the value of a column; raises InputError where the column is missing or null."""
    if column not in record:
        have = ", ".join(str(name) for name in record)
        raise InputError(f"{where}: no field '{column}' (found: {have})")
    if record[column] is None:  # null, or a line of a CSV file with too few fields
        raise InputError(f"{where}: field '{column}' has no value")
    return record[column]


def parse_text(record: dict[str, Any], column: str, where: str) -> str:
    """Return the text in a column; raises InputError where the column is missing, blank, or not text."""
    text = required(record, column, where)
    if not isinstance(text, str):
        raise InputError(f"{where}: field '{column}' is {type(text).__name__}, expected text")
    if not text.strip():
        raise InputError(f"{where}: field '{column}' is empty")
    if re.search("[\ud800-\udfff]", text):
        raise InputError(f"{where}: field '{column}' holds half of a surrogate pair: no text")
    return text


def parse_rows(
    records: Iterable[Record],
    task: TaskConfig,
    columns: Columns,
    names: Sequence[str],
    labels: Sequence[str],
    rename: dict[str, str],
) -> list[Row]:
    """Return the records as examples whose labels are indices into `labels`.

    Args:
        records: (where, record) in the order of the data; `where` names file and row in messages.
        task: the task; a pair where its template has two texts.
        columns: which field of a record is which text, and which the label.
        names: the names of the classes in the data, for labels that are numbers.
        labels: the names of the classes, in the order of the label numbers that are returned.
        rename: the name of a class in the data → its name in `labels`.
    """
    pair, rows = is_pair(task), []
    for where, record in records:
        if pair:
            text = parse_text(record, columns.text_a, where)
            text_b = parse_text(record, columns.text_b, where)
        else:
            text, text_b = parse_text(record, columns.text, where), None
        name = parse_label(required(record, columns.label, where), names, rename, where)
        if name not in labels:
            raise InputError(
                f"{where}: label '{name}' of task {task.name} is none of {list(labels)}; "
                "task.ood_labels maps names of another task to this one's"
            )
        rows.append(Row(text, text_b, labels.index(name)))
    return rows
