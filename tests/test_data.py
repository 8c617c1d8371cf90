"""Rows: every reader gives the same, every fault is one line, and sampling is what it says."""

from __future__ import annotations

import copy
import csv
import functools
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import runs
from skillgraft.config import compose, packages
from skillgraft.config.schema import ResolvedConfig, RunConfig
from skillgraft.runtime.errors import InputError
from skillgraft.tasks import leaks, loading, parsing, readers, sampling
from skillgraft.tasks.rows import SPLITS, Row, TaskData, is_pair

Records = Sequence[dict[str, Any]]
LABELS = ("negative", "positive")
# Any text that a UTF-8 file can hold and that is not blank.
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.strip)
FILES = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


@functools.cache
def _composed(*overrides: str) -> RunConfig:
    return runs.composed(*overrides)


def composed(*overrides: str) -> RunConfig:
    """Return a configuration of one's own; each is composed once."""
    return copy.deepcopy(_composed(*overrides))


def expanded(*overrides: str) -> ResolvedConfig:
    """Return a configuration with the tasks that it names."""
    return compose.expand(_composed(*overrides), [packages.CONF])


def write(path: Path, records: Records) -> Path:
    """Write records in the format that the file's ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pd.DataFrame(records).to_parquet(path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        path.write_text("".join(lines), encoding="utf-8", newline="")
    return path


def rows(n: int, name: str = "row", labels: Sequence[Any] = LABELS) -> list[dict[str, Any]]:
    """Return n records, their classes in turn."""
    return [{"text": f"{name} {i}", "label": labels[i % len(labels)]} for i in range(n)]


def folder(root: Path, task: str = "cr", **splits: Records) -> Path:
    """Write `<root>/<task>/<split>.jsonl`; train and test have rows if nothing else is said."""
    splits = {"train": rows(20, "train"), "test": rows(6, "test"), **splits}
    for split, records in splits.items():
        write(root / task / f"{split}.jsonl", records)
    return root


def settings_of(root: Path, *overrides: str, task: str = "cr") -> ResolvedConfig:
    small = () if any(o.startswith("shots=") for o in overrides) else ("shots=4",)
    cfg = composed(f"task={task}", "task.ood=[]", *small, *overrides)
    cfg.data_dir = str(root)
    return compose.expand(cfg, [packages.CONF])


def load(root: Path, *overrides: str, task: str = "cr") -> TaskData:
    return loading.load(settings_of(root, *overrides, task=task))


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------------------- readers


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".CSV"])
def test_readers_agree(tmp_path: Path, suffix: str) -> None:
    records = [
        {"text": 'He said "so, what?"', "label": "positive"},
        {"text": "two\nlines\tand a tab", "label": "negative"},
        {"text": " naïve 日本 🎬 ", "label": "1"},
    ]
    path = tmp_path / f"rows{suffix}"
    write(tmp_path / f"rows{suffix.lower()}", records).rename(path)
    found = readers.read_file(path, "task.train")
    assert [record for _, record in found] == records
    assert [where for where, _ in found] == [f"{path}, row {n}" for n in (1, 2, 3)]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
@FILES
def test_any_text_survives(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("rows") / f"rows{suffix}"
    write(path, [{"text": text, "label": "positive"} for text in texts])
    assert [record["text"] for _, record in readers.read_file(path, "task.train")] == texts


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_byte_order_mark(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", rows(2))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [record for _, record in readers.read_file(path, "task.train")] == rows(2)


def test_blank_lines_count_but_give_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"text": "a"}\n  \n{"text": "b"}\n\n')
    assert [where for where, _ in readers.read_jsonl(path)] == [f"{path}, row 2", f"{path}, row 4"]


def test_windows_line_ends(tmp_path: Path) -> None:
    for name, content in {"a.csv": "text,label\r\na,1\r\n", "a.jsonl": '{"text": "a"}\r\n'}.items():
        (tmp_path / name).write_bytes(content.encode())
        [(_, record)] = readers.read_file(tmp_path / name, "task.train")
        assert record["text"] == "a"


# ------------------------------------------------------------------------------- faults in files

GOOD = '{"text": "fine", "label": "positive"}\n'


def jsonl(second: str) -> bytes:
    """Return a file whose second row is the one to look at."""
    return f"{GOOD}{second}\n{GOOD}".encode()


def record(text: Any, label: Any) -> bytes:
    return jsonl(json.dumps({"text": text, "label": label}))


FAULTS = {
    "broken JSON": ("jsonl", jsonl('{"text": "a", "label"'), ["row 2", "not JSON"]),
    "a very long number": ("jsonl", jsonl("9" * 5000), ["row 2"]),
    "deep nesting": ("jsonl", jsonl("[" * 100_000), ["row 2", "JSON"]),
    "a list": ("jsonl", jsonl('["a", 1]'), ["row 2", "expected an object", "list"]),
    "a string": ("jsonl", jsonl('"a"'), ["row 2", "expected an object", "str"]),
    "null": ("jsonl", jsonl("null"), ["row 2", "expected an object"]),
    "no text": ("jsonl", jsonl('{"txt": "a", "label": 1}'), ["row 2", "'text'", "txt"]),
    "null text": ("jsonl", record(None, 1), ["row 2", "'text'"]),
    "empty text": ("jsonl", record("", 1), ["row 2", "'text'", "empty"]),
    "blank text": ("jsonl", record(" \t\n", 1), ["row 2", "'text'", "empty"]),
    "a number for a text": ("jsonl", record(5, 1), ["row 2", "'text'", "int"]),
    "half a surrogate": ("jsonl", record("a\ud800b", 1), ["row 2", "'text'"]),
    "no label": ("jsonl", jsonl('{"text": "a", "lable": 1}'), ["row 2", "'label'", "lable"]),
    "null label": ("jsonl", record("a", None), ["row 2", "'label'"]),
    "label 2": ("jsonl", record("a", 2), ["row 2", "label 2", "0 to 1"]),
    "label -1": ("jsonl", record("a", -1), ["row 2", "label -1", "0 to 1"]),
    "label '2'": ("jsonl", record("a", "2"), ["row 2", "label 2", "0 to 1"]),
    "label '²'": ("jsonl", record("a", "²"), ["row 2", "label '²'"]),
    "label of 5000 digits": ("jsonl", record("a", "9" * 5000), ["row 2", "label"]),
    "label 1.5": ("jsonl", record("a", 1.5), ["row 2", "label 1.5"]),
    "label true": ("jsonl", record("a", True), ["row 2", "label True"]),
    "label list": ("jsonl", record("a", ["positive"]), ["row 2", "label ['positive']"]),
    "label object": ("jsonl", record("a", {"is": 1}), ["row 2", "label {'is': 1}"]),
    "label neutral": ("jsonl", record("a", "neutral"), ["row 2", "'neutral'", "negative"]),
    "label Positive": ("jsonl", record("a", "Positive"), ["row 2", "'Positive'", "positive"]),
    "empty label": ("jsonl", record("a", ""), ["row 2", "label"]),
    "not UTF-8": ("jsonl", jsonl("x").replace(b"x", b"\xff"), ["not UTF-8"]),
    "UTF-16": ("jsonl", GOOD.encode("utf-16"), ["not UTF-8"]),
    "csv: more fields": ("csv", b"text,label\na,1\nb,1,2\n", ["row 2", "more fields"]),
    "csv: fewer fields": ("csv", b"text,label\na,1\nb\n", ["row 2", "'label'"]),
    "csv: empty text": ("csv", b"text,label\na,1\n,1\n", ["row 2", "'text'"]),
    "csv: open quote": ("csv", b'text,label\na,1\n"b,1\n', ["line", "not CSV"]),
    "csv: no column": ("csv", b"txt,label\na,1\n", ["row 1", "'text'", "txt"]),
    "csv: semicolons": ("csv", b"text;label\na;1\n", ["row 1", "'text'", "text;label"]),
    "csv: Latin-1": ("csv", "text,label\ncaf\xe9,1\n".encode("latin-1"), ["not UTF-8"]),
    "parquet: not one": ("parquet", b"PAR1 so it says", ["not a parquet file"]),
    "parquet: empty": ("parquet", b"", ["not a parquet file"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_file_row_and_field(tmp_path: Path, fault: str) -> None:
    suffix, content, expected = FAULTS[fault]
    folder(tmp_path)
    (tmp_path / "cr" / "train.jsonl").unlink()
    path = tmp_path / "cr" / f"train.{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        load(tmp_path)
    for part in (str(path), *expected):
        assert part in one_line(error)


def test_a_parquet_file_cut_off(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", rows(50))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a parquet file"):
        readers.read_file(path, "task.train")


@pytest.mark.parametrize("field", ["text_a", "text_b"])
@pytest.mark.parametrize("value", [None, " ", 7])
def test_faults_in_pairs(tmp_path: Path, field: str, value: Any) -> None:
    pair = {"text_a": "a", "text_b": "b", "label": "entailment"}
    folder(tmp_path, "rte", train=[pair, {**pair, field: value}])
    with pytest.raises(InputError, match=rf"train\.jsonl, row 2: .*field '{field}'") as error:
        load(tmp_path, task="rte")
    one_line(error)


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b"{}", b'{"label_names": 5}', b'{"label_names": "ab"}', b"\xff", b"7"],
)
def test_faults_in_meta(tmp_path: Path, content: bytes) -> None:
    folder(tmp_path)
    (tmp_path / "cr" / "meta.json").write_bytes(content)
    with pytest.raises(InputError, match=r"meta\.json.*label_names") as error:
        load(tmp_path)
    one_line(error)


# ------------------------------------------------------------------------------- faults of a task


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data_dir=.*no folder .*mpqa for task mpqa"):
        load(tmp_path, task="mpqa")
    with pytest.raises(InputError, match=r"data_dir=.*none.*no folder .*cr for task cr"):
        load(tmp_path / "none")


def test_what_the_folder_lacks_comes_from_the_hub(hub, tmp_path: Path) -> None:
    folder(tmp_path)
    columns = {
        "text": [f"t {i}" for i in range(8)],
        "label_text": [LABELS[i % 2] for i in range(8)],
    }
    hub({"test": dataset(columns, "label_text")})
    loaded = load(tmp_path, "task.ood=[sst2]")
    assert [row.text for row in loaded.ood["sst2"]] == columns["text"]
    assert loaded.test[0].text == "test 0"
    columns = {
        "text": [f"t {i}" for i in range(20)],
        "label_text": [LABELS[i % 2] for i in range(20)],
    }
    hub(dict.fromkeys(("train", "validation", "test"), dataset(columns, "label_text")))
    assert (
        f"sst2: {tmp_path} has no sst2/, so its rows are the hub's"
        in load(tmp_path, "shots=2", task="sst2").notes
    )


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("empty", [True, False])
def test_no_rows(tmp_path: Path, split: str, empty: bool) -> None:
    path = folder(tmp_path) / "cr" / f"{split}.jsonl"
    path.write_text("") if empty else path.unlink()
    with pytest.raises(InputError, match=f"task cr: no {split} rows"):
        load(tmp_path)


def test_a_class_without_a_row(tmp_path: Path) -> None:
    folder(tmp_path, train=rows(9, labels=["positive"]))
    with pytest.raises(InputError, match="task cr: no training row has the label 'negative'"):
        load(tmp_path)


def test_nothing_left_for_validation(tmp_path: Path) -> None:
    folder(tmp_path, train=rows(8))
    with pytest.raises(InputError, match=r"task cr: .*validation.*lower shots"):
        load(tmp_path, "shots=4")


CUSTOM = (
    "task.name=mine",
    "task.template='*text* It was *mask*.'",
    "task.labels=[negative,positive]",
    "task.verbalizer=[terrible,great]",
)


def custom(tmp_path: Path, *overrides: str) -> TaskData:
    return loading.load(expanded("task=custom", *CUSTOM, "shots=4", *overrides))


@pytest.mark.parametrize("missing", ["train", "validation", "test"])
def test_no_file(tmp_path: Path, missing: str) -> None:
    files = {s: write(tmp_path / f"{s}.csv", rows(20)) for s in SPLITS}
    files[missing] = tmp_path / "nowhere.csv"
    with pytest.raises(InputError, match=rf"task\.{missing}: no file .*nowhere\.csv"):
        custom(tmp_path, *(f"task.{split}={path}" for split, path in files.items()))


@pytest.mark.parametrize("name", ["rows.tsv", "rows", "rows.jsonl.gz"])
def test_unknown_ending(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(InputError, match=r"task\.train: .*expected one of \.jsonl.*\.parquet"):
        readers.read_file(tmp_path / name, "task.train")


def test_files_without_train(tmp_path: Path) -> None:
    path = write(tmp_path / "test.csv", rows(4))
    with pytest.raises(InputError, match=r"task mine: task\.train and task\.test"):
        custom(tmp_path, "task.train=null", f"task.test={path}")


def test_columns_of_own_files(tmp_path: Path) -> None:
    own = [{"review": r["text"], "stars": r["label"]} for r in rows(20)]
    train, test = write(tmp_path / "a.csv", own), write(tmp_path / "b.parquet", own[:6])
    files = (f"task.train={train}", f"task.test={test}")
    named = ("task.columns.text=review", "task.columns.label=stars")
    loaded = custom(tmp_path, *files, *named)
    assert loaded.test == [Row(f"row {i}", None, i % 2) for i in range(6)]
    with pytest.raises(
        InputError, match=r"a\.csv, row 1: no field 'text' \(found: review, stars\)"
    ):
        custom(tmp_path, *files)


# ------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("labels", [LABELS, (0, 1), ("0", "1")])
def test_labels_as_names_or_numbers(tmp_path: Path, suffix: str, labels: Sequence[Any]) -> None:
    for split, n in (("train", 20), ("test", 6)):
        write(tmp_path / "cr" / f"{split}{suffix}", rows(n, split, labels))
    assert load(tmp_path).test == [Row(f"test {i}", None, i % 2) for i in range(6)]


@pytest.mark.parametrize("labels", [LABELS, (1, 0), ("1", "0")])
def test_meta_maps_by_name(tmp_path: Path, labels: Sequence[Any]) -> None:
    """A folder whose integers mean other things than ours: names decide, not positions."""
    folder(tmp_path, train=rows(20, labels=labels), test=rows(6, labels=labels))
    (tmp_path / "cr" / "meta.json").write_text('{"label_names": ["positive", "negative"]}')
    assert [row.label for row in load(tmp_path).test] == [0, 1, 0, 1, 0, 1]


def test_meta_with_a_name_that_the_task_lacks(tmp_path: Path) -> None:
    folder(tmp_path, test=rows(6, labels=(0, 1, 2)))
    meta = {"label_names": ["negative", "positive", "mixed"]}
    (tmp_path / "cr" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match=r"test\.jsonl, row 3: label 'mixed' of task cr is none"):
        load(tmp_path)


@given(value=st.text(max_size=6) | st.integers() | st.floats() | st.booleans() | st.none())
def test_a_label_is_a_name_or_an_error(value: Any) -> None:
    try:
        found, told = parsing.parse_label(value, LABELS, {}, "here"), ""
    except InputError as error:
        found, told = "", str(error)
    assert found in LABELS or told.startswith("here: label")


# ------------------------------------------------------------------------------- sampling


def counts(drawn: Sequence[Row]) -> dict[int, int]:
    return dict(Counter(row.label for row in drawn))


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("seed", [0, 13])
def test_k_a_class(tmp_path: Path, split: bool, seed: int) -> None:
    more = {"validation": rows(30, "held")} if split else {}
    folder(tmp_path, train=rows(40, "train"), **more)
    loaded = load(tmp_path, "shots=5", f"seed={seed}")
    assert counts(loaded.train) == counts(loaded.validation) == {0: 5, 1: 5}
    assert loaded.notes == []
    train, held = {r.text for r in loaded.train}, {r.text for r in loaded.validation}
    assert len(train) == len(held) == 10  # without replacement
    assert not train & held
    assert {text.split()[0] for text in held} == {"held" if split else "train"}
    assert [row.text for row in loaded.test] == [f"test {i}" for i in range(6)]  # in file order


@given(
    labels=st.lists(st.integers(0, 2), min_size=1, max_size=40),
    shots=st.integers(1, 15),
    seed=st.integers(0, 2**63 - 1),
)
def test_sample(labels: list[int], shots: int, seed: int) -> None:
    pool = [Row(f"{i}", None, label) for i, label in enumerate(labels)]
    drawn = sampling.sample(pool, 3, shots, seed)
    assert len(set(drawn)) == len(drawn)
    have = Counter(labels)
    wanted = {label: min(shots, n) for label, n in have.items()}
    assert Counter(labels[i] for i in drawn) == wanted
    assert drawn == sampling.sample(pool, 3, shots, seed)


def test_classes_are_mixed() -> None:
    pool = [Row(f"{i}", None, i % 2) for i in range(100)]
    labels = [pool[i].label for i in sampling.sample(pool, 2, 50, 0)]
    assert 10 < sum(labels[:50]) < 40


def test_seeds(tmp_path: Path) -> None:
    folder(tmp_path, train=rows(60))
    drawn = {seed: load(tmp_path, f"seed={seed}") for seed in (0, 1, 13, 21)}
    assert len({loaded.digest() for loaded in drawn.values()}) == 4
    assert load(tmp_path, "seed=0") == drawn[0]
    assert len({tuple(loaded.test) for loaded in drawn.values()}) == 1


@pytest.mark.parametrize(("k", "fewer"), [(2, {}), (4, {"positive": 3})])
def test_fewer_than_k_is_a_note(tmp_path: Path, k: int, fewer: dict[str, int]) -> None:
    few = [{"text": f"few {i}", "label": "negative" if i > 2 else "positive"} for i in range(20)]
    folder(tmp_path, train=few, validation=rows(20, "held"))
    loaded = load(tmp_path, f"shots={k}")
    assert counts(loaded.train) == {0: k, 1: min(k, 3)}
    assert loaded.notes == ([f"cr: train: fewer than {k} rows for {fewer}"] if fewer else [])


def test_a_class_missing_from_validation_is_a_note(tmp_path: Path) -> None:
    folder(tmp_path, validation=rows(9, "held", ["positive"]))
    loaded = load(tmp_path, "shots=4")
    assert counts(loaded.validation) == {1: 4}
    assert loaded.notes == ["cr: validation: fewer than 4 rows for {'negative': 0}"]


def test_all_rows_without_a_validation_split(tmp_path: Path) -> None:
    folder(tmp_path, train=rows(200, "train"))
    loaded = load(tmp_path, "shots=null")
    assert (len(loaded.train), len(loaded.validation)) == (190, 10)
    assert {r.text for r in loaded.train + loaded.validation} == {f"train {i}" for i in range(200)}
    assert loaded.train != load(tmp_path, "shots=null", "seed=14").train


def test_all_rows_with_a_validation_split(tmp_path: Path) -> None:
    folder(tmp_path, train=rows(30, "train"), validation=rows(7, "held"))
    loaded = load(tmp_path, "shots=null")
    assert sorted(r.text for r in loaded.train) == sorted(f"train {i}" for i in range(30))
    assert [r.text for r in loaded.validation] == [f"held {i}" for i in range(7)]


def test_test_rows(tmp_path: Path) -> None:
    folder(tmp_path)
    assert [r.text for r in load(tmp_path, "task.max_test_examples=2").test] == ["test 0", "test 1"]
    assert len(load(tmp_path, "task.max_test_examples=100").test) == 6


@pytest.mark.parametrize(
    ("first", "rest", "told"),
    [
        ((760, 240), (240, 760), True),
        ((506, 494), (403, 418), False),
        ((12, 0), (0, 12), True),
        ((3, 0), (0, 3), False),  # one time in ten
        ((1, 0, 30), (0, 0, 0), False),  # all of them
        ((1, 10, 10), (0, 500, 500), False),  # as rare as a class can be
        ((30, 10, 10), (10, 10, 30), True),
    ],
)
def test_first_rows_that_are_no_chance_draw(
    first: Sequence[int], rest: Sequence[int], told: bool
) -> None:
    parts = [
        [Row("", None, c) for c, n in enumerate(part) for _ in range(n)] for part in (first, rest)
    ]
    notes = sampling.imbalance("yelp", "abc", [*parts[0], *parts[1]], sum(first))
    assert bool(notes) == told


def test_first_rows_of_a_sorted_file(tmp_path: Path) -> None:
    """Of the task's own test and of another's; the draw stays what it is."""
    by_class = [{"text": f"{label} {i}", "label": label} for label in LABELS for i in range(20)]
    folder(tmp_path, test=by_class)
    folder(tmp_path, "mr", test=by_class[::-1])
    loaded = load(tmp_path, "task.ood=[mr]", "task.max_test_examples=20")
    other = "the first 20 test rows are another mixture of classes than all 40"
    assert loaded.notes == [
        f"cr: {other}: {{'negative': 20, 'positive': 0}} of {{'negative': 20, 'positive': 20}}",
        f"mr: {other}: {{'negative': 0, 'positive': 20}} of {{'negative': 20, 'positive': 20}}",
    ]
    assert {row.label for row in loaded.test} == {0}
    assert load(tmp_path, "task.ood=[mr]").notes == []


# ------------------------------------------------------------------------------- contamination


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("A good film", "a  GOOD\tfilm\n", True),
        ("Straße", "STRASSE", True),
        ("A good film", "a good film !", True),
        ("it 's great", "It's great.", True),
        ("A good film", "Two good films", False),
        ("!!", "?", False),
    ],
)
def test_contamination(tmp_path: Path, a: str, b: str, same: bool) -> None:
    train, note = [Row(a, None, 0)], "a text that is also in a's train rows (3 in those drawn)"
    found = leaks.contamination({"a": (train, train)}, {"b": [Row(b, None, 1)] * 3})
    assert found == [f"b: 3 of 3 test rows have {note}"] * same
    copied = [*rows(20, "train", ["positive"]), {"text": a, "label": "negative"}]
    folder(tmp_path, train=copied, test=[*rows(3, "test"), {"text": b, "label": "positive"}])
    note = "cr: 1 of 4 test rows have a text that is also in cr's train rows (1 in those drawn)"
    assert (note in load(tmp_path, "shots=1").notes) == same


def test_pairs_are_the_same_only_as_pairs() -> None:
    train = [Row("a", "b", 0)]
    test = [Row("A ", "B", 1), Row("a", "c", 0), Row("b", "a", 0), Row("a b", None, 0)]
    assert leaks.contamination({"a": (train, [])}, {"b": test}) == [
        "b: 1 of 4 test rows have a text that is also in a's train rows (0 in those drawn)"
    ]


def test_contamination_across_a_mixture(tmp_path: Path) -> None:
    """Every task's train rows against every task's test rows, once for each pair of tasks."""
    folder(tmp_path, "sst2", train=rows(20, "film"), test=rows(5, "book"), validation=rows(8, "a"))
    folder(tmp_path, "mr", train=rows(20, "BOOK!"), test=rows(7, "film"), validation=rows(2, "b"))
    folder(tmp_path, "cr", validation=rows(8, "c"))
    options = ("finetune=multitask", "finetune.tasks=[sst2,mr,cr]")
    loaded = load(tmp_path, *options, task="sst2")
    assert [re.sub(r"\(\d", "(n", note) for note in loaded.notes] == [
        "mr: validation: fewer than 4 rows for {'negative': 1, 'positive': 1}",
        "mr: 7 of 7 test rows have a text that is also in sst2's train rows (n in those drawn)",
        "sst2: 5 of 5 test rows have a text that is also in mr's train rows (n in those drawn)",
    ]
    assert list(loaded.others) == ["mr", "cr"]
    assert load(tmp_path, task="sst2").digest() == loaded.digest()


# ------------------------------------------------------------------------------- digest

BASE = TaskData(
    train=[Row("a", None, 0), Row("b", None, 1)],
    validation=[Row("c", None, 0)],
    test=[Row("d", "e", 1)],
    ood={"other": [Row("f", None, 0)]},
    notes=["one"],
)
CHANGES = {
    "a text": {"train": [Row("A", None, 0), Row("b", None, 1)]},
    "a label": {"train": [Row("a", None, 1), Row("b", None, 1)]},
    "the order": {"train": [Row("b", None, 1), Row("a", None, 0)]},
    "a second text": {"test": [Row("d", "E", 1)]},
    "a split": {"train": BASE.train[:1], "validation": [*BASE.validation, BASE.train[1]]},
    "an OOD row": {"ood": {"other": [Row("g", None, 0)]}},
    "an OOD name": {"ood": {"another": BASE.ood["other"]}},
    "no OOD": {"ood": {}},
    "where texts end": {"test": [Row("de", "", 1)]},
}


@pytest.mark.parametrize("what", CHANGES)
def test_digest_changes_with(what: str) -> None:
    assert TaskData(**{**vars(BASE), **CHANGES[what]}).digest() != BASE.digest()


def test_digest_depends_on_rows_alone(tmp_path: Path) -> None:
    assert TaskData(**{**vars(BASE), "notes": []}).digest() == BASE.digest()
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two" / "deep")
    for split in ("train", "test"):  # another place, another format
        path = two / "cr" / f"{split}.jsonl"
        write(path.with_suffix(".csv"), [r for _, r in readers.read_jsonl(path)])
        path.unlink()
    assert load(one).digest() == load(two).digest()


# ------------------------------------------------------------------------------- out of distribution


def entail(n: int, labels: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"text_a": f"a {i}", "text_b": f"b {i}", "label": labels[i % 3]} for i in range(n)]


NLI = ("entailment", "neutral", "contradiction")


def nli(root: Path, labels: Sequence[Any] = NLI) -> Path:
    folder(root, "mnli", train=entail(9, labels), test=entail(9, labels))
    yes_no = ("entailment", "not_entailment", "not_entailment")
    return folder(root, "rte", train=entail(30, yes_no), test=entail(6, yes_no))


@pytest.mark.parametrize(("labels", "names"), [(NLI, NLI), ((2, 0, 1), NLI[1:] + NLI[:1])])
def test_ood_labels_are_mapped_by_name(tmp_path: Path, labels, names: Sequence[str]) -> None:
    nli(tmp_path, labels)
    meta = {"label_names": [NLI[1], NLI[2], NLI[0]]}
    (tmp_path / "mnli" / "meta.json").write_text(json.dumps(meta))
    loaded = load(tmp_path, "task.ood=[mnli]", "task.max_test_examples=6", task="rte")
    assert [row.label for row in loaded.ood["mnli"]] == [0, 1, 1, 0, 1, 1]
    assert len(loaded.ood["mnli"]) == 6  # test_rows holds there too
    assert list(loaded.evaluated()) == ["validation", "test", "ood/mnli"]


def test_ood_in_another_order_of_labels(tmp_path: Path) -> None:
    """The other task's integers are its own; ours are found by name."""
    folder(tmp_path)
    text = "defaults: [sst2, _self_]\nname: reversed\nlabels: [positive, negative]\n"
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "reversed.yaml").write_text(text)
    folder(tmp_path, "reversed", test=rows(4, "other", (0, 1)))
    cfg = composed("task=cr", f"data_dir={tmp_path}", "shots=4", "task.ood=[reversed]")
    cfg = compose.expand(cfg, [packages.CONF, tmp_path / "conf"])
    assert [row.label for row in loading.load(cfg).ood["reversed"]] == [1, 0, 1, 0]


def test_ood_that_cannot_be_mapped(tmp_path: Path) -> None:
    nli(tmp_path)
    cfg = composed("task=rte", f"data_dir={tmp_path}", "shots=4", "task.ood=[mnli]")
    cfg.task.ood_labels = {"neutral": "not_entailment"}
    cfg = compose.expand(cfg, [packages.CONF])
    expected = r"mnli.*row 3: label 'contradiction' of task mnli is none of.*task\.ood_labels"
    with pytest.raises(InputError, match=expected):
        loading.load(cfg)


def test_ood_with_a_class_that_is_either_of_two(tmp_path: Path) -> None:
    nli(tmp_path)
    loaded = load(tmp_path, "shots=1", "task.ood=[rte]", task="mnli")
    assert loaded.joined == {"ood/rte": [[1, 2]]}
    assert [row.label for row in loaded.ood["rte"]] == [0, 1, 1, 0, 1, 1]
    with pytest.raises(InputError, match=r"task\.ood_labels: 'neutral\|no': 'no' is none of"):
        load(
            tmp_path,
            "shots=1",
            "task.ood=[rte]",
            "task.ood_labels={not_entailment: neutral|no}",
            task="mnli",
        )


def test_ood_labels_that_stand_for_two_classes(tmp_path: Path) -> None:
    nli(tmp_path)
    mapped = "+task.ood_labels.entailment=neutral"
    with pytest.raises(InputError, match=r"task\.ood_labels: 'neutral' stands for two classes"):
        load(tmp_path, "shots=1", "task.ood=[rte]", mapped, task="mnli")


def test_ood_of_another_kind(tmp_path: Path) -> None:
    nli(folder(tmp_path))
    for task, other in (("cr", "rte"), ("rte", "cr")):
        with pytest.raises(InputError, match=f"task.ood: {other} and {task} are not both single"):
            load(tmp_path, f"task.ood=[{other}]", task=task)


def test_ood_without_test_rows(tmp_path: Path) -> None:
    folder(tmp_path)
    folder(tmp_path, "mr", test=[])
    with pytest.raises(InputError, match=r"task\.ood: mr has no test rows"):
        load(tmp_path, "task.ood=[mr]")


def test_contamination_of_ood(tmp_path: Path) -> None:
    folder(tmp_path)
    folder(tmp_path, "mr", test=rows(20, "TRAIN"))
    assert (
        "mr: 20 of 20 test rows have a text that is also in cr's train rows (8 in those drawn)"
        in load(tmp_path, "task.ood=[mr]").notes
    )


# ------------------------------------------------------------------------------- the hub


@pytest.fixture
def hub(monkeypatch):
    """Put local data sets in the hub's place; calls are kept."""
    import datasets

    calls: list[tuple[Any, ...]] = []

    def install(splits: dict[str, Any]) -> list[tuple[Any, ...]]:
        def load_dataset(path, name=None, *, split, revision=None, **more):
            calls.append((path, name, split, revision))
            if isinstance(splits[split], BaseException):
                raise splits[split]
            return splits[split]

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return install


def dataset(columns: dict[str, Sequence[Any]], label: str, names: Sequence[str] | None = None):
    import datasets

    features = {name: datasets.Value("string") for name in columns}
    features[label] = datasets.ClassLabel(names=list(names)) if names else datasets.Value("string")
    return datasets.Dataset.from_dict(dict(columns), features=datasets.Features(features))


def from_hub(task: str, *overrides: str) -> TaskData:
    return loading.load(expanded(f"task={task}", "task.ood=[]", "shots=2", *overrides))


def test_hub_columns_and_unlabelled_rows(hub) -> None:
    """stanfordnlp/snli: a label of −1 is no label."""
    ints = [0, 1, 2, -1] * 5
    split = dataset(
        {
            "premise": [f"Premise {i}" for i in range(20)],
            "hypothesis": [f"hypothesis {i}" for i in range(20)],
            "label": ints,
        },
        "label",
        NLI,
    )
    calls = hub({"train": split, "validation": split, "test": split})
    loaded = from_hub("snli", "task.hub.revision=abc")
    expected = [Row(f"Premise {i}", f"hypothesis {i}", i % 4) for i in range(20) if i % 4 < 3]
    assert loaded.test == expected
    assert ("stanfordnlp/snli", None, "test", "abc") in calls


def test_hub_labels_name_the_integers(hub) -> None:
    """CogComp/trec: its own names are others, its column is coarse_label."""
    columns = {
        "text": [f"What {i}?" for i in range(24)],
        "coarse_label": [i % 6 for i in range(24)],
    }
    split = dataset(columns, "coarse_label", ["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"])
    hub({"train": split, "test": split})
    assert [row.label for row in from_hub("trec").test] == [i % 6 for i in range(24)]
    labels = "task.hub.labels=[number,entity,description,human,location,abbreviation]"
    assert [row.label for row in from_hub("trec", labels).test][:6] == [5, 1, 2, 3, 4, 0]


def test_hub_label_names_in_a_column(hub) -> None:
    """SetFit: names in label_text, beside integers."""
    columns = {
        "text": [f"t {i}" for i in range(8)],
        "label_text": [LABELS[i % 2] for i in range(8)],
    }
    split = dataset(columns, "label_text")
    hub({"train": split, "test": split, "validation": split})
    assert [row.label for row in from_hub("sst2").test] == [0, 1] * 4


def test_hub_names_in_another_order(hub) -> None:
    """Labels are mapped by name: a data set that says what its integers mean is believed."""
    columns = {"sentence": [f"s {i}" for i in range(8)], "label": [i % 2 for i in range(8)]}
    split = dataset(columns, "label", ["acceptable", "unacceptable"])
    calls = hub({"train": split, "validation": split})
    assert [row.label for row in from_hub("cola").test] == [1, 0] * 4
    assert ("nyu-mll/glue", "cola", "validation", None) in calls


def hub_errors() -> dict[str, BaseException]:
    import datasets
    import httpx
    import huggingface_hub.errors as hub_errors

    return {
        "offline": ConnectionError("Couldn't reach 'x' on the Hub\n(offline)"),
        "not found": datasets.exceptions.DatasetNotFoundError("Dataset 'x' doesn't exist"),
        "no such split": ValueError('Unknown split "tests".'),
        "scripts": RuntimeError("Dataset scripts are no longer supported"),
        "offline mode": hub_errors.OfflineModeIsEnabled("Offline mode is enabled."),
        "no connection": httpx.ConnectError("Name or service not known"),
        "no message": OSError(),
    }


@pytest.mark.parametrize("kind", hub_errors())
def test_hub_errors_name_data_dir(hub, kind: str) -> None:
    error = hub_errors()[kind]
    hub({"train": error, "test": error})
    with pytest.raises(
        InputError, match=r"task cola: .*nyu-mll/glue \(cola\).*train.*data_dir"
    ) as e:
        from_hub("cola")
    one_line(e)


def test_no_hub_data_set() -> None:
    with pytest.raises(InputError, match=r"task mpqa: .*data_dir=FOLDER.*mpqa/train\.jsonl"):
        from_hub("mpqa")


HUB_TASKS = (
    "agnews amazon anli cola cr imdb mnli mr mrpc qnli qqp rte snli sst2 sst5 subj trec yelp"
)


@pytest.mark.parametrize("task", HUB_TASKS.split())
def test_every_hub_task_reads_its_own_columns(hub, task: str) -> None:
    """The names in conf/task reach the columns that the data set has, of whatever kind."""
    cfg = expanded(f"task={task}", "task.ood=[]", "shots=2")
    source, pair = cfg.task.hub, is_pair(cfg.task)
    names = list(source.labels) or list(cfg.task.labels)
    texts = [source.columns.text_a, source.columns.text_b] if pair else [source.columns.text]
    by_name = source.columns.label == "label_text"
    numbers = [i % len(names) for i in range(30)]
    columns: dict[str, Any] = {c: [f"{c} {i}" for i in range(30)] for c in texts}
    columns[source.columns.label] = [names[i] for i in numbers] if by_name else numbers
    split = dataset(columns, source.columns.label, None if by_name else names)
    read = [s for s in (source.train, source.validation, source.test) if s]
    calls = hub(dict.fromkeys(read, split))
    own = [list(cfg.task.labels).index(names[i]) for i in numbers]
    assert [row.label for row in loading.load(cfg).test] == own
    assert [call[2] for call in calls] == read


def test_embedded_rows_need_no_files() -> None:
    loaded = loading.load(expanded("task=toy_film", "task.ood=[]", "shots=3"))
    assert counts(loaded.train) == counts(loaded.validation) == {0: 3, 1: 3}


def test_csv_text_is_not_interpreted(tmp_path: Path) -> None:
    """NA, 001 and true are texts, whatever a data frame would make of them."""
    (tmp_path / "a.csv").write_text("text,label\nNA,positive\n001,negative\ntrue,positive\n")
    found = [record["text"] for _, record in readers.read_file(tmp_path / "a.csv", "task.train")]
    assert found == ["NA", "001", "true"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", '{"text": null, "label": 0}\n', r"a\.jsonl, row 1: field 'text' has no value"),
        ("a.jsonl", '[{"text": "x"}]\n', r"a\.jsonl, row 1: expected an object, found list"),
        ("a.csv", "text,label\nfine\n", r"a\.csv, row 1: field 'label' has no value"),
        ("a.csv", "text,label,text\na,0,b\n", r"a\.csv: two columns are named 'text'"),
    ],
)
def test_what_is_there_and_has_no_value(tmp_path: Path, name, content, expected) -> None:
    (tmp_path / name).write_text(content)
    cfg = expanded("task=custom", "task.name=mine", f"task.train={tmp_path / name}",
                   f"task.test={tmp_path / name}", "task.template='*text* It was *mask*.'",
                   "task.labels=[no,yes]", "task.verbalizer=[bad,good]")  # fmt: skip
    with pytest.raises(InputError, match=expected):
        loading.load(cfg)


def test_an_empty_split_is_named_with_its_file(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "cr" / "test.jsonl").unlink()
    with pytest.raises(InputError, match=r"no test rows in .*cr/test\.jsonl"):
        load(tmp_path)
