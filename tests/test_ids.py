"""Ids of runs, written down: what names a run may not change unless somebody means it to.

Rows and model are the embedded ones, which are the same on every machine; nothing is trained.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from runs import composed

from skillgraft.config import compose, packages, validation
from skillgraft.config.schema import RunConfig
from skillgraft.runtime.files import write_json
from skillgraft.store import references
from skillgraft.store.identity import Identity, identify
from skillgraft.tasks import loading
from skillgraft.tasks.rows import TaskData

MIXTURE = ("finetune=multitask", "finetune.tasks=[toy_film,toy_topic]")
SEQUENCE = ("model.sequence=[toy_film,toy_topic]",)
IDS: dict[tuple[str, ...], str] = {
    (): "toy_film-tiny-learned-s0.01-seed13-104be559f8",
    ("task=toy_topic", "seed=21"): "toy_topic-tiny-learned-s0.01-seed21-e8156c463a",
    ("task=toy_para", "sparsity=1e-3"): "toy_para-tiny-learned-s0.001-seed13-70344e8b98",
    ("task=toy_film", "task.ood=[]"): "toy_film-tiny-learned-s0.01-seed13-8018b03bc8",
    ("task=toy_question",): "toy_question-tiny-learned-s0.01-seed13-1bb30c8eb8",
    ("seed=0", "shots=null"): "toy_film-tiny-learned-s0.01-seed0-851e90bb89",
    ("shots=4", "task.test_rows=50"): "toy_film-tiny-learned-s0.01-seed13-c38d589016",
    ("graft=stitch_l1",): "toy_film-tiny-stitch_l1-s0.01-seed13-1405704da0",
    ("graft=attribution", "sparsity=1e-3"): "toy_film-tiny-attribution-s0.001-seed13-86472b1619",
    ("graft=fisher", "graft.per_example=true"): "toy_film-tiny-fisher-s0.01-seed13-7b205d5331",
    ("graft=movement", "sparsity=0"): "toy_film-tiny-movement-s0-seed13-62bec6a2bd",
    ("graft=magnitude", "sparsity=1"): "toy_film-tiny-magnitude-s1-seed13-5341f6729a",
    ("graft=random", "seed=42"): "toy_film-tiny-random-s0.01-seed42-88537aab13",
    ("graft=bias",): "toy_film-tiny-bias-seed13-91ded13cf8",
    ("graft=layer", "graft.layer=3"): "toy_film-tiny-layer-3-seed13-3fb4f367f1",
    ("graft=module", "graft.module=query"): "toy_film-tiny-module-query-seed13-3ccb5db1f0",
    ("finetune=linear", "graft=movement"): "toy_film-tiny-movement-s0.01-seed13-5a86bb154b",
    ("finetune=prompt_l1", "finetune.steps=300"): "toy_film-tiny-learned-s0.01-seed13-0429e0b2fa",
    ("finetune=bitfit", "graft=bias"): "toy_film-tiny-bias-seed13-9f5cbf6c62",
    ("finetune=lora",): "toy_film-tiny-learned-s0.01-seed13-26318e92b7",
    (
        "compare.temperature=true",
        "compare.wise=[0.5]",
    ): "toy_film-tiny-learned-s0.01-seed13-061d213fc9",
    (
        "compare.lottery=[100]",
        "compare.inside=[100]",
    ): "toy_film-tiny-learned-s0.01-seed13-d0afb8fdfc",
    ("trainer.precision=bf16-mixed", "threads=1"): "toy_film-tiny-learned-s0.01-seed13-f0b716e74c",
    (
        "finetune=multitask",
        "finetune.tasks=[toy_film,toy_topic]",
    ): "toy_film-tiny-learned-s0.01-seed13-d8ada27589",
    (
        "finetune=multitask",
        "finetune.tasks=[toy_film,toy_topic]",
        "task=toy_topic",
        "graft=movement",
    ): "toy_topic-tiny-movement-s0.01-seed13-28448d9332",
    (
        "model.sequence=[toy_film,toy_topic]",
        "task=toy_film",
    ): "toy_film-tiny-learned-s0.01-seed13-104be559f8",
    (
        "model.sequence=[toy_film,toy_topic]",
        "task=toy_film",
        "model.take=finetuned",
    ): "toy_film-tiny-learned-s0.01-seed13-104be559f8",
}
SIZED = ("graft=random", "graft.match=learned")  # at the size of a learned region
DIGESTS: dict[tuple[str, ...], dict[str, str]] = {
    (): {
        "finetuned": "97c1e7840b",
        "peers": "4cbb6368c0",
        "rivals": "d9dd74247a",
        "setting": "6fe80c9649",
        "region": "104be559f8",
        "left": "32f6b7eb51",
        "stage": "79cd499c8c:toy_film",
    },
    ("graft=attribution", "sparsity=1e-3", "seed=21"): {
        "finetuned": "55a8b5d665",
        "peers": "4601633b2b",
        "rivals": "bca2c53307",
        "setting": "8468e68b02",
        "region": "d949ca97fe",
        "left": "2e7091687d",
        "stage": "d43de66eaa:toy_film",
    },
    ("finetune=linear", "graft=movement"): {
        "finetuned": "edb7569c0c",
        "peers": "b48678da6e",
        "rivals": "3be8719e14",
        "setting": "12eddc663f",
        "region": "5a86bb154b",
        "left": "dde148adb1",
        "stage": "68dc4957fb:toy_film",
    },
    ("compare.temperature=true",): {
        "finetuned": "97c1e7840b",
        "peers": "4cbb6368c0",
        "rivals": "d9dd74247a",
        "setting": "cef9e8eb6d",
        "region": "104be559f8",
        "left": "32f6b7eb51",
        "stage": "79cd499c8c:toy_film",
    },
    ("finetune=multitask", "finetune.tasks=[toy_film,toy_topic]"): {
        "finetuned": "78adacc19a",
        "peers": "5d73c1b821",
        "rivals": "4a3594142e",
        "setting": "b9130b24a5",
        "region": "d8ada27589",
        "left": "aa526d284c",
        "stage": "99149711ef:toy_film",
    },
}


def resolved(*overrides: str) -> tuple[RunConfig, TaskData]:
    """Return a run's configuration, filled in as before it is named, and its rows."""
    cfg = composed(*overrides)
    validation.check(cfg)
    cfg.task.verbalizer = validation.verbalizer(cfg.task)
    compose.expand(cfg, [packages.CONF])
    references.absolute_paths(cfg)
    references.resolve_after(cfg)
    rows = loading.load(cfg)
    references.resolve_paths(cfg, rows)
    return cfg, rows


@pytest.fixture
def identity(tmp_path: Path):
    """Return what names the run of some overrides; its store is empty."""

    def named(*overrides: str, size: int | None = None) -> Identity:
        cfg, rows = resolved(f"store={tmp_path / 'runs'}", *overrides)
        return identify(cfg, rows, size)

    return named


def write_graft(file: Path, task: str) -> Path:
    """Write a graft without entries, byte for byte: a library that writes could change the digest."""
    meta = {"task": task, "selector": "movement", "asked_sparsity": 0.01, "rule": None}
    header = {"__metadata__": {"skillgraft": json.dumps({"meta": meta})}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    return file


def write_stage(folder: Path) -> Path:
    """Write what of the first stage of a sequence names the second."""
    cfg, _ = resolved(f"store={folder.parent}", *SEQUENCE, "task=toy_film")
    folder.mkdir()
    OmegaConf.save(cfg, folder / "config.yaml")
    write_json(folder / "status.json", {"id": "first", "model": "tiny", "left": "0123456789"})
    return folder


@pytest.mark.parametrize("overrides", IDS, ids=" ".join)
def test_id_of_a_run(identity, overrides: tuple[str, ...]) -> None:
    assert identity(*overrides).id == IDS[overrides]


@pytest.mark.parametrize("overrides", DIGESTS, ids=" ".join)
def test_what_a_run_shares_with_others(identity, overrides: tuple[str, ...]) -> None:
    named = identity(*overrides)
    found = {name: getattr(named, name) for name in DIGESTS[overrides]}
    assert found == DIGESTS[overrides]


def test_id_at_the_size_of_another_region(identity) -> None:
    named = identity(*SIZED, size=7931)
    assert named.id == "toy_film-tiny-random-s0.01-seed13-292ff2f1a7"
    assert named.peers == "b0d8fe5c8f"
    assert named.setting == "f7ab5a87e2"


def test_id_of_stored_grafts(identity, tmp_path: Path) -> None:
    files = [write_graft(tmp_path / task, task) for task in ("toy_film", "toy_topic")]
    named = identity("graft=file", f"graft.paths=[{files[0]},{files[1]}]")
    assert named.id == "toy_film-tiny-file-seed13-7c3d3fea7c"
    assert named.setting == "56d75de0de"
    assert named.finetuned == identity().finetuned


def test_id_of_a_later_stage_of_a_sequence(identity, tmp_path: Path) -> None:
    first = write_stage(tmp_path / "first")
    named = identity(*SEQUENCE, "task=toy_topic", f"model.after={first}")
    assert named.id == "toy_topic-tiny-learned-s0.01-seed13-36aaa32f26"
    assert named.left == "b98cd4debe"
    assert named.stage == "7f0341f049:toy_film>toy_topic"
