"""The hub's paths, without a network: folders in the layouts that the hub's own libraries use."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from runs import composed, expanded
from skillgraft.config import validation
from skillgraft.embedded import MODEL, generator
from skillgraft.models import checkpoint_files
from skillgraft.runtime.errors import InputError
from skillgraft.tasks import loading

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds the model me/tiny, and no way out of it."""
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--me--tiny"
    shutil.copytree(MODEL, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_model_from_the_hub(cache: Path) -> None:
    cfg = composed("model=hub", "model.path=me/tiny")
    folder = checkpoint_files.locate(cfg.model)
    assert folder.name == COMMIT
    assert checkpoint_files.digests(cfg.model, cache / "digests") == checkpoint_files.digests(
        composed().model, cache / "digests"
    )


def test_model_that_the_hub_does_not_give(cache: Path) -> None:
    with pytest.raises(
        InputError, match=r"model.path=me/other: no folder, and not found on the Hub"
    ):
        checkpoint_files.locate(composed("model=hub", "model.path=me/other").model)


def test_revision_that_is_not_there(cache: Path) -> None:
    with pytest.raises(InputError, match=r"model.path=me/tiny"):
        checkpoint_files.locate(
            composed("model=hub", "model.path=me/tiny", "model.revision=v9").model
        )


def test_data_set_in_the_layout_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet shards a split, integer labels, columns by other names: the rows of the suite itself."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names = ["positive", "negative"]  # another order than the task's
    for split in ("train", "validation", "test"):
        frame = pd.DataFrame(generator.rows("toy_film", split))
        frame = pd.DataFrame({"sentence": frame["text"], "label": frame["label"].map(names.index)})
        (tmp_path / "set" / "data").mkdir(parents=True, exist_ok=True)
        frame.to_parquet(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet")
    cfg = expanded(
        "task.source=hub",
        f"task.hub.path={tmp_path / 'set'}",
        "task.hub.validation=validation",
        "task.hub.columns.text=sentence",
        "task.hub.labels=[positive,negative]",
        "task.ood=[]",
    )
    embedded = expanded("task.ood=[]")
    validation.check(cfg)
    assert loading.load(cfg).digest() == loading.load(embedded).digest()
