"""A job that was named once is found again at once, unless anything that it was named from is another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from runs import CONTEXT, TINY, composed, expanded, make
from skillgraft.config import compose, packages
from skillgraft.experiments import pipeline, run
from skillgraft.runtime import files
from skillgraft.store import job_cache, names
from skillgraft.tasks import loading
from skillgraft.tasks.rows import SPLITS
from stores import pretend

Made = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Make a run, whose metrics are made up, or find it whole."""
    monkeypatch.setattr(pipeline, "make_run", pretend)
    return lambda *overrides: make(tmp_path / "runs", *TINY, "graft=random", *overrides)


def recalled(tmp_path: Path, *overrides: str) -> Path | None:
    """Return what is known of a job, by itself."""
    cfg = composed(f"store={tmp_path / 'runs'}", *TINY, "graft=random", *overrides)
    file = job_cache.entry(cfg, [packages.CONF])
    return None if file is None else job_cache.recall(file)


def test_whole_run_is_found_without_its_data(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recalled(tmp_path) is None
    folder = made()
    assert recalled(tmp_path) == folder
    assert recalled(tmp_path, "seed=7") is None
    assert recalled(tmp_path, "force=true") is None
    monkeypatch.setattr(loading, "load", None)
    assert made() == folder
    shutil.rmtree(folder)
    assert recalled(tmp_path) is None


def test_job_knows_its_run(made: Made, tmp_path: Path) -> None:
    folder = made()
    cfg = composed(f"store={tmp_path / 'runs'}", *TINY, "graft=random")
    again = run.run(cfg, replace(CONTEXT, folder=tmp_path))
    assert again == folder
    assert files.read_json(tmp_path / names.RUN_FILE)["id"] == folder.name


def rows(path: Path, word: str) -> None:
    labels = ["bad", "good"] * 12
    lines = [json.dumps({"text": f"{word} {n}", "label": label}) for n, label in enumerate(labels)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


OWN = (
    "task=custom", "task.name=mine", "task.labels=[bad,good]", "task.verbalizer=[bad,good]",
    "'task.template=*text* it was *mask* .'",
)  # fmt: skip


@pytest.mark.parametrize("changed", ["train", "validation", "test"])
def test_another_content_of_a_file(made: Made, tmp_path: Path, changed: str) -> None:
    own = [*(o.strip("'") for o in OWN)]
    for split in SPLITS:
        rows(tmp_path / f"{split}.jsonl", split)
        own.append(f"task.{split}={tmp_path / split}.jsonl")
    folder = made(*own)
    assert recalled(tmp_path, *own) == folder
    rows(tmp_path / f"{changed}.jsonl", "other")
    assert recalled(tmp_path, *own) is None
    assert made(*own) != folder


def test_file_that_comes_into_a_data_folder(made: Made, tmp_path: Path) -> None:
    own = [*(o.strip("'") for o in OWN), "task.source=hub", f"data_dir={tmp_path / 'data'}"]
    for split in ("train", "test"):
        rows(tmp_path / "data" / "mine" / f"{split}.jsonl", split)
    folder = made(*own)
    assert recalled(tmp_path, *own) == folder
    rows(tmp_path / "data" / "mine" / "validation.jsonl", "validation")
    assert recalled(tmp_path, *own) is None
    assert made(*own) != folder


def test_files_that_an_ood_task_stands_on() -> None:
    """A base that changes, or that comes into a folder, makes the answer another."""
    folders = [packages.CONF, Path("own")]
    cfg = compose.expand(composed("task.ood=[toy_book_long]"), folders)
    places = set(job_cache.places_of(cfg, folders))
    for name in ("toy_book_long", "toy_book", "_toy_sentiment", "_toy"):
        assert {folder / "task" / f"{name}.yaml" for folder in folders} <= places
    assert set(job_cache.places_of(cfg, [])) < places  # of a run that is made again


def test_another_run_to_match(made: Made, tmp_path: Path) -> None:
    matching = ("graft=movement", "graft.size_from=random")
    random, folder = made(), made(*matching)
    assert recalled(tmp_path, *matching) == folder
    metrics = files.read_json(random / "metrics.json")
    metrics["region"]["size"] += 1
    files.write_json(random / "metrics.json", metrics)
    files.write_json(random / "status.json", files.read_json(random / "status.json"))
    assert recalled(tmp_path, *matching) is None
    assert made(*matching) != folder


def test_what_depends_on_more_is_not_remembered(tmp_path: Path) -> None:
    for overrides in (
        ("graft=file", "graft.paths=[a]"),
        ("graft.size_from=bias",),
        (f"graft.size_from={tmp_path}",),
        ("continual.tasks=[toy_film]",),
        (f"continual.init_from={tmp_path}",),
    ):
        assert job_cache.entry(composed(*TINY, "graft=random", *overrides), [packages.CONF]) is None
    hub = expanded("task=sst2", "task.ood=[]", *(o for o in TINY if "ood" not in o))
    assert job_cache.reads(hub, [packages.CONF]) is None


def test_another_program(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made()
    monkeypatch.setattr(job_cache, "program", lambda: "another")
    assert recalled(tmp_path) is None
    assert made() == folder


def test_damaged_note(made: Made, tmp_path: Path) -> None:
    folder = made()
    (note,) = (tmp_path / "runs" / ".cache" / "jobs").iterdir()
    note.write_text("{")
    assert recalled(tmp_path) is None
    assert made() == folder == recalled(tmp_path)
