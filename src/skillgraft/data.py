"""Rows of a task: read, checked, sampled and named by a digest. Needs neither torch nor a tokenizer."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from skillgraft.config import Columns, RunConfig, Source, TaskConfig
from skillgraft.errors import InputError, reason
from skillgraft.seeds import derive

SPLITS = ("train", "validation", "test")
EITHER = "|"  # in task.ood_labels: a class of the other task that is any of these of ours


class Row(NamedTuple):
    """One example: its text, the second text of a pair, and the index of its label."""

    text: str
    text_b: str | None
    label: int


@dataclass(frozen=True)
class TaskData:
    """All rows a run reads, after sampling; `ood` holds the test rows of other tasks.

    `others` are whole tasks beside the run's own: of a mixture, or earlier in a sequence.
    """

    train: list[Row]
    validation: list[Row]
    test: list[Row]
    ood: dict[str, list[Row]]
    notes: list[str]
    others: dict[str, TaskData] = field(default_factory=dict)
    # split → classes that are one there
    joined: dict[str, list[list[int]]] = field(default_factory=dict)

    def evaluated(self) -> dict[str, list[Row]]:
        """Return the splits on which models are measured, by their name in metrics.json."""
        ood = {f"ood/{name}": rows for name, rows in self.ood.items()}
        return {"validation": self.validation, "test": self.test, **ood}

    def digest(self) -> str:
        """Return the sha256 of every row, its split and its order."""
        content = {"train": self.train, **self.evaluated()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def training_digest(self) -> str:
        """Return the sha256 of the rows on which weights and region depend: training and validation."""
        content = [self.train, self.validation]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def is_pair(task: TaskConfig) -> bool:
    """Return whether the task's template takes two texts."""
    return "*b*" in task.template


# ---------------------------------------------------------------------------------------------
# Reading: every record comes with the place that an error names.

Record = tuple[str, dict[str, Any]]  # ("file.jsonl, row 3", {"text": …, "label": …})


def read_jsonl(path: Path) -> Iterator[Record]:
    """Yield the objects of a JSON-lines file; blank lines are passed over."""
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, row {number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{where}: not JSON ({error.msg} at column {error.colno}); "
                    "expected one object a line"
                ) from error
            except (ValueError, RecursionError) as error:  # thousands of digits or of brackets
                raise InputError(f"{where}: not readable JSON ({error})") from error
            if not isinstance(record, dict):
                raise InputError(f"{where}: expected an object, found {type(record).__name__}")
            yield where, record


def read_csv(path: Path) -> Iterator[Record]:
    """Yield the rows of a CSV file with a header; row 1 is the first below the header."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        twice = [name for name, n in Counter(reader.fieldnames or ()).items() if n > 1]
        if twice:
            raise InputError(f"{path}: two columns are named '{twice[0]}'")
        try:
            for number, record in enumerate(reader, 1):
                if None in record:
                    raise InputError(
                        f"{path}, row {number}: more fields than the header has columns"
                    )
                yield f"{path}, row {number}", record
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def read_parquet(path: Path) -> Iterator[Record]:
    """Yield the rows of a parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from error
    for number, record in enumerate(table.to_pylist(), 1):
        yield f"{path}, row {number}", record


READERS = {".jsonl": read_jsonl, ".json": read_jsonl, ".csv": read_csv, ".parquet": read_parquet}


def read_file(path: Path, key: str) -> list[Record]:
    """Return the records of a jsonl, csv or parquet file."""
    if not path.is_file():
        raise InputError(f"{key}: no file {path}")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{key}: {path}: expected one of {', '.join(READERS)}")
    try:
        return list(reader(path))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}: {error.reason})") from error


def read_hub(task: TaskConfig, split: str) -> tuple[list[Record], list[str]]:
    """Return one split of a hub data set, and what its integer labels mean by its own account."""
    hub = task.hub
    if hub.path is None:
        raise InputError(
            f"task {task.name}: no hub data set is known for it; give data_dir=FOLDER with "
            f"FOLDER/{task.name}/{split}.jsonl"
        )
    source = getattr(hub, split)
    if source is None:
        return [], []
    import datasets
    import httpx  # what huggingface-hub 1 is built on

    datasets.disable_progress_bars()
    where = f"{hub.path}{f' ({hub.name})' if hub.name else ''}"
    try:
        rows = datasets.load_dataset(hub.path, hub.name, split=source, revision=hub.revision)
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        raise InputError(
            f"task {task.name}: cannot load {where}, split {source}, from the hub ({reason(error)}); "
            f"with a local copy give data_dir=FOLDER, with FOLDER/{task.name}/"
        ) from error
    records = ((f"{where}, {source}, row {n}", record) for n, record in enumerate(rows, 1))
    # −1 is the hub's own mark of a row without a label
    kept = [(place, record) for place, record in records if record.get(hub.columns.label) != -1]
    own = getattr(rows.features.get(hub.columns.label), "names", None)  # of a ClassLabel
    return kept, list(own or [])


def local_folder(task: TaskConfig, data_dir: str | None) -> Path | None:
    """Return the folder of a task's local copy, or None where it comes from elsewhere.

    A task that `data_dir` lacks comes from the hub, so that one folder can hold what the hub does not.
    """
    if task.source is not Source.hub or data_dir is None:
        return None
    folder = Path(data_dir) / task.name
    if not folder.is_dir() and (task.hub.path is None or not Path(data_dir).is_dir()):
        raise InputError(f"data_dir={data_dir}: no folder {folder} for task {task.name}")
    return folder if folder.is_dir() else None


def folder_split(folder: Path, split: str) -> Path | None:
    """Return the file of a split in a folder `<data_dir>/<task>/`, or None."""
    files = (folder / f"{split}{suffix}" for suffix in READERS)
    return next((file for file in files if file.is_file()), None)


def folder_labels(folder: Path) -> list[str] | None:
    """Return `label_names` of a folder's meta.json: the names that integer labels index."""
    meta = folder / "meta.json"
    if not meta.is_file():
        return None
    try:
        names = json.loads(meta.read_text(encoding="utf-8-sig"))["label_names"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{meta}: expected an object with a list 'label_names'") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{meta}: expected an object with a list 'label_names' of names")
    return names


# ---------------------------------------------------------------------------------------------
# Checking


def parse_label(value: Any, names: Sequence[str], rename: dict[str, str], where: str) -> str:
    """Return the label's name; `names` are the source's own, `rename` maps them to the task's."""
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
    """Return the value of a column, which must be there and not be null."""
    if column not in record:
        have = ", ".join(str(name) for name in record)
        raise InputError(f"{where}: no field '{column}' (found: {have})")
    if record[column] is None:  # null, or a row of a CSV file that ends early
        raise InputError(f"{where}: field '{column}' has no value")
    return record[column]


def parse_text(record: dict[str, Any], column: str, where: str) -> str:
    """Return the text in a column, which must be there and not be blank."""
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
    """Return rows whose labels index `labels`; raise InputError at the first that does not fit."""
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


def load_split(
    task: TaskConfig,
    split: str,
    data_dir: str | None,
    labels: Sequence[str],
    rename: dict[str, str],
) -> list[Row]:
    """Return all rows of one split, or an empty list where the source has no such split."""
    names: Sequence[str] = list(task.labels)
    columns = Columns()
    if task.source is Source.embedded:
        from skillgraft.embedded import generator

        if task.name not in generator.TASKS:
            known = ", ".join(generator.TASKS)
            raise InputError(f"task.name={task.name}: the embedded suite has {known}")
        found = generator.rows(task.name, split)
        records = [(f"{task.name}, {split}, row {n}", row) for n, row in enumerate(found, 1)]
    elif task.source is Source.files:
        columns, path = task.columns, getattr(task, split)
        records = read_file(Path(path), f"task.{split}") if path else []
    elif (folder := local_folder(task, data_dir)) is not None:
        names = folder_labels(folder) or names
        path = folder_split(folder, split)
        records = read_file(path, "data_dir") if path else []
    else:
        columns = task.hub.columns
        records, own = read_hub(task, split)
        names = list(task.hub.labels) or own or names
    return parse_rows(records, task, columns, names, labels, rename)


def files(cfg: RunConfig) -> list[Path]:
    """Return the data files that a run reads: none for the tasks of the embedded suite and of the hub."""
    found: list[Path] = []
    for task in (cfg.task, *cfg.others.values(), *(cfg.ood[name] for name in cfg.task.ood)):
        splits = ("test",) if task.name in cfg.task.ood else SPLITS
        if task.source is Source.files:
            found += [Path(path) for split in splits if (path := getattr(task, split))]
        elif folder := local_folder(task, cfg.data_dir):
            found += [path for split in splits if (path := folder_split(folder, split))]
            found += [meta for meta in [folder / "meta.json"] if meta.is_file()]
    return found


# ---------------------------------------------------------------------------------------------
# Sampling


def by_class(rows: Sequence[Row], classes: int) -> list[list[int]]:
    """Return the positions of each class's rows."""
    positions: list[list[int]] = [[] for _ in range(classes)]
    for index, row in enumerate(rows):
        positions[row.label].append(index)
    return positions


def sample(rows: Sequence[Row], classes: int, shots: int, seed: int) -> list[int]:
    """Return positions of up to `shots` rows a class, drawn without replacement, in a mixed order."""
    random = np.random.default_rng(seed)
    chosen = [
        int(index)
        for positions in by_class(rows, classes)
        for index in random.permutation(positions)[:shots]
    ]
    return [chosen[i] for i in random.permutation(len(chosen))]


def split_train(
    train: list[Row], validation: list[Row], task: TaskConfig, shots: int | None, seed: int
) -> tuple[list[Row], list[Row], list[str]]:
    """Return train and validation rows (method: sections 2 and 6) and notes on what was short.

    With `shots`: that many a class for training, and as many from the validation split, or from the
    training rows left over. Without: all rows, 95 % / 5 % where there is no validation split.
    """
    classes, notes = len(task.labels), list[str]()
    if shots is None:
        order = np.random.default_rng(derive(seed, "data", "split")).permutation(len(train))
        if validation:
            return [train[i] for i in order], validation, notes
        cut = max(1, round(0.05 * len(train)))
        return [train[i] for i in order[cut:]], [train[i] for i in order[:cut]], notes
    chosen = sample(train, classes, shots, derive(seed, "data", "train"))
    taken = set(chosen)
    pool = validation or [row for i, row in enumerate(train) if i not in taken]
    held = sample(pool, classes, shots, derive(seed, "data", "validation"))
    few_train, few_held = [train[i] for i in chosen], [pool[i] for i in held]
    for name, rows in (("train", few_train), ("validation", few_held)):
        count = Counter(row.label for row in rows)
        short = {task.labels[c]: count[c] for c in range(classes) if count[c] < shots}
        if short:
            notes.append(f"{name}: fewer than {shots} rows for {short}")
    return few_train, few_held, notes


def folded(row: Row) -> tuple[str, ...]:
    """Return the letters and digits of a row's texts, without regard to case.

    One sentence is spaced and punctuated otherwise in every collection that has it. A text without any
    keeps what it has, but for its white space.
    """
    texts = (text.casefold() for text in row[:2] if text is not None)
    return tuple(re.sub(r"[\W_]+", "", text) or re.sub(r"\s+", " ", text).strip() for text in texts)


def contamination(
    trains: Mapping[str, tuple[Sequence[Row], Sequence[Row]]], tests: Mapping[str, Sequence[Row]]
) -> list[str]:
    """Return a note for each task's training set and each task's test that have a text in common.

    A training set is all its rows and those drawn from them; a note counts the test rows that are in
    each.
    """
    texts = {name: [folded(row) for row in rows] for name, rows in tests.items()}
    notes = []
    for task, rows in trains.items():
        every, drawn = ({folded(row) for row in part} for part in rows)
        for name, test in texts.items():
            if shared := sum(text in every for text in test):
                few = sum(text in drawn for text in test)
                notes.append(
                    f"{name}: {shared} of {len(test)} test rows have a text that is also in "
                    f"{task}'s train rows ({few} in those drawn)"
                )
    return notes


def load(cfg: RunConfig) -> TaskData:
    """Return the rows of a run: sampled train and validation, test, and out-of-distribution tests.

    Its notes are those on all tasks; a model that is trained on several is tested on several.
    """
    task = cfg.task
    own, everything = load_task(task, cfg)
    notes, trains = list(own.notes), {task.name: (everything, own.train)}
    others, ood, joined = {}, {}, {}
    for name, other in cfg.others.items():
        others[name], everything = load_task(other, cfg)
        notes += others[name].notes
        trains[name] = everything, others[name].train
    for name in task.ood:
        other = cfg.ood[name]
        if is_pair(other) != is_pair(task):
            raise InputError(f"task.ood: {name} and {task.name} are not both single or both pairs")
        rename, joined[f"ood/{name}"] = mapped(task, other)
        rows = load_split(other, "test", cfg.data_dir, list(task.labels), rename)
        if not rows:
            raise InputError(f"task.ood: {name} has no test rows")
        ood[name] = rows[: task.test_rows]
        notes += imbalance(name, list(task.labels), rows, len(ood[name]))
    # one that is both has the same texts in both
    tests = {**ood, **{name: part.test for name, part in others.items()}, task.name: own.test}
    notes = list(dict.fromkeys([*notes, *contamination(trains, tests)]))
    return replace(own, ood=ood, notes=notes, others=others, joined=joined)


def mapped(task: TaskConfig, other: TaskConfig) -> tuple[dict[str, str], list[list[int]]]:
    """Return another task's label → this one's, and which of this one's classes are one there, by index.

    Of a label that is any of several, the first stands for it.
    """
    rename = {**{label: label for label in other.labels}, **task.ood_labels}
    parts = {n: [n] if n in task.labels else n.split(EITHER) for n in rename.values()}
    theirs = {n: parts[n] for label, n in rename.items() if label in other.labels}
    for value, names in theirs.items():
        for name in names if len(names) > 1 else ():
            if name not in task.labels:
                raise InputError(
                    f"task.ood_labels: '{value}': '{name}' is none of {list(task.labels)}"
                )
            if any(name in others for other, others in theirs.items() if other != value):
                raise InputError(f"task.ood_labels: '{name}' stands for two classes at once")
    order = list(task.labels)
    joined = [[order.index(name) for name in names] for names in theirs.values() if len(names) > 1]
    return {label: parts[named][0] for label, named in rename.items()}, joined


def load_task(task: TaskConfig, cfg: RunConfig) -> tuple[TaskData, list[Row]]:
    """Return the sampled rows of one task, without out-of-distribution tests, and all its train rows."""
    labels = list(task.labels)
    if task.source is Source.files and not (task.train and task.test):
        raise InputError(f"task {task.name}: task.train and task.test: give a file for each")
    everything = {s: load_split(task, s, cfg.data_dir, labels, {}) for s in SPLITS}
    for split in ("train", "test"):
        if not everything[split]:
            raise InputError(f"task {task.name}: no {split} rows{place_of(task, split, cfg)}")
    for label, positions in zip(labels, by_class(everything["train"], len(labels)), strict=True):
        if not positions:
            raise InputError(
                f"task {task.name}: no training row has the label '{label}'"
                f"{place_of(task, 'train', cfg)}"
            )
    train, validation, notes = split_train(
        everything["train"], everything["validation"], task, cfg.shots, cfg.seed
    )
    if not validation:
        raise InputError(
            f"task {task.name}: no rows are left for validation of {len(everything['train'])}, with "
            f"{len(train)} for training: give task.validation or lower shots ({cfg.shots} a class)"
        )
    test = everything["test"][: task.test_rows]
    notes = [f"{task.name}: {note}" for note in notes]
    if cfg.data_dir and task.source is Source.hub and not local_folder(task, cfg.data_dir):
        notes.append(f"{task.name}: {cfg.data_dir} has no {task.name}/, so its rows are the hub's")
    notes += imbalance(task.name, labels, everything["test"], len(test))
    return TaskData(train, validation, test, {}, notes), everything["train"]


def place_of(task: TaskConfig, split: str, cfg: RunConfig) -> str:
    """Return where the rows of a split were looked for, for the end of an error."""
    if task.source is Source.files:
        return f" in {getattr(task, split)}"
    if folder := local_folder(task, cfg.data_dir):
        return f" in {folder_split(folder, split) or folder / f'{split}.jsonl'}"
    return ""


def imbalance(name: str, labels: Sequence[str], rows: Sequence[Row], first: int) -> list[str]:
    """Return a note where the first rows of a test set are no chance draw of its classes (p < 1e-3).

    By Fisher's exact test of each class against the others, corrected for their number (Bonferroni).
    """
    if first == len(rows):
        return []
    from scipy.stats import fisher_exact

    whole, head = (Counter(row.label for row in part) for part in (rows, rows[:first]))
    rest = len(rows) - first

    def chance(label: int) -> float:
        here, there = head[label], whole[label] - head[label]
        return float(fisher_exact([[here, first - here], [there, rest - there]]).pvalue)

    if min(map(chance, whole)) * len(whole) >= 1e-3:
        return []
    counts = ({labels[label]: part[label] for label in sorted(whole)} for part in (head, whole))
    return [
        f"{name}: the first {first} test rows are another mixture of classes than all {len(rows)}: "
        + " of ".join(map(str, counts))
    ]
