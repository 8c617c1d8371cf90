"""Ids of runs, written down: what names a run may not change unless somebody means it to.

Rows and model are the embedded ones, which are the same on every machine; nothing is trained.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from runs import CONTEXT, composed
from skillgraft.experiments.resolve import resolve
from skillgraft.runtime.files import write_json
from skillgraft.store import references
from skillgraft.store.identity import Identity

MIXTURE = ("finetune=multitask", "finetune.tasks=[toy_film,toy_topic]")
SEQUENCE = ("continual.tasks=[toy_film,toy_topic]",)
IDS: dict[tuple[str, ...], str] = {
    (): "toy_film-tiny-learned-s0.01-seed13-68c3b7e831",
    ("task=toy_topic", "seed=21"): "toy_topic-tiny-learned-s0.01-seed21-0e280292f9",
    ("task=toy_para", "sparsity=1e-3"): "toy_para-tiny-learned-s0.001-seed13-5b148e519f",
    ("task=toy_film", "task.ood=[]"): "toy_film-tiny-learned-s0.01-seed13-16134b4f7e",
    ("task=toy_question",): "toy_question-tiny-learned-s0.01-seed13-3e1b02e12f",
    ("seed=0", "shots=null"): "toy_film-tiny-learned-s0.01-seed0-4f6e782587",
    ("shots=4", "task.max_test_examples=50"): "toy_film-tiny-learned-s0.01-seed13-b6a10a0917",
    ("graft=stitch_l1",): "toy_film-tiny-stitch_l1-s0.01-seed13-bc01e150bf",
    ("graft=attribution", "sparsity=1e-3"): "toy_film-tiny-attribution-s0.001-seed13-bbcba4bfa9",
    ("graft=fisher", "graft.per_example=true"): "toy_film-tiny-fisher-s0.01-seed13-1dd57cab84",
    ("graft=movement", "sparsity=0"): "toy_film-tiny-movement-s0-seed13-fb431a69e1",
    ("graft=magnitude", "sparsity=1"): "toy_film-tiny-magnitude-s1-seed13-162730f390",
    ("graft=random", "seed=42"): "toy_film-tiny-random-s0.01-seed42-b3806b34e7",
    ("graft=bias",): "toy_film-tiny-bias-seed13-167fd2031a",
    ("graft=layer", "graft.layer=3"): "toy_film-tiny-layer-3-seed13-ab19bbca7a",
    ("graft=module", "graft.module=query"): "toy_film-tiny-module-query-seed13-3c1e390689",
    ("finetune=linear", "graft=movement"): "toy_film-tiny-movement-s0.01-seed13-304d14620d",
    ("finetune=prompt_l1", "finetune.steps=300"): "toy_film-tiny-learned-s0.01-seed13-4551d8bc40",
    ("finetune=bitfit", "graft=bias"): "toy_film-tiny-bias-seed13-592b8909fa",
    ("finetune=lora",): "toy_film-tiny-learned-s0.01-seed13-bba105bd1e",
    (
        "compare.temperature=true",
        "compare.wise_ft_alphas=[0.5]",
    ): "toy_film-tiny-learned-s0.01-seed13-26815f82b9",
    (
        "compare.lottery_steps=[100]",
        "compare.inside_steps=[100]",
    ): "toy_film-tiny-learned-s0.01-seed13-4005900ac5",
    ("trainer.precision=bf16-mixed", "threads=1"): "toy_film-tiny-learned-s0.01-seed13-9dab705dad",
    (
        "finetune=multitask",
        "finetune.tasks=[toy_film,toy_topic]",
    ): "toy_film-tiny-learned-s0.01-seed13-a0369e5b69",
    (
        "finetune=multitask",
        "finetune.tasks=[toy_film,toy_topic]",
        "task=toy_topic",
        "graft=movement",
    ): "toy_topic-tiny-movement-s0.01-seed13-bdc1bbcb32",
    (
        "continual.tasks=[toy_film,toy_topic]",
        "task=toy_film",
    ): "toy_film-tiny-learned-s0.01-seed13-68c3b7e831",
    (
        "continual.tasks=[toy_film,toy_topic]",
        "task=toy_film",
        "continual.carry=finetuned",
    ): "toy_film-tiny-learned-s0.01-seed13-68c3b7e831",
}
SIZED = ("graft=random", "graft.size_from=learned")  # at the size of a learned region
DIGESTS: dict[tuple[str, ...], dict[str, str]] = {
    (): {
        "finetuned": "0a4998ab7f",
        "same_but_task": "077bf83231",
        "same_but_selector": "7bc006108f",
        "same_but_seed": "6968963c8f",
        "region": "68c3b7e831",
        "same_outcome": "7d004f5466",
        "stage": "acba69d48e:toy_film",
    },
    ("graft=attribution", "sparsity=1e-3", "seed=21"): {
        "finetuned": "24428dd156",
        "same_but_task": "59510aa453",
        "same_but_selector": "27b4033d44",
        "same_but_seed": "621356cb13",
        "region": "aca64b8236",
        "same_outcome": "1522ceb8f1",
        "stage": "b893156c9e:toy_film",
    },
    ("finetune=linear", "graft=movement"): {
        "finetuned": "e85fd6204c",
        "same_but_task": "743a6470ca",
        "same_but_selector": "49cf0739b6",
        "same_but_seed": "2f80ae6f85",
        "region": "304d14620d",
        "same_outcome": "a936bf85d5",
        "stage": "445d734231:toy_film",
    },
    ("compare.temperature=true",): {
        "finetuned": "0a4998ab7f",
        "same_but_task": "077bf83231",
        "same_but_selector": "7bc006108f",
        "same_but_seed": "10174c921b",
        "region": "68c3b7e831",
        "same_outcome": "7d004f5466",
        "stage": "acba69d48e:toy_film",
    },
    ("finetune=multitask", "finetune.tasks=[toy_film,toy_topic]"): {
        "finetuned": "6fa12b182f",
        "same_but_task": "27b1a2302b",
        "same_but_selector": "1cb5cad15e",
        "same_but_seed": "0726d587e0",
        "region": "a0369e5b69",
        "same_outcome": "ee97dd6a27",
        "stage": "902ae9eb79:toy_film",
    },
}


@pytest.fixture
def identity(tmp_path: Path):
    """Return what names the run of some overrides; its store is empty."""

    def named(*overrides: str, size: int | None = None) -> Identity:
        with pytest.MonkeyPatch.context() as patch:
            if size is not None:  # of a run that the store does not have
                patch.setattr(references, "matched_size", lambda *_: size)
            return resolve(composed(f"store={tmp_path / 'runs'}", *overrides), CONTEXT).identity

    return named


def write_graft(file: Path, task: str) -> Path:
    """Write a graft without entries, byte for byte: a library that writes could change the digest."""
    meta = {"task": task, "selector": "movement", "requested_sparsity": 0.01, "rule": None}
    header = {"__metadata__": {"skillgraft": json.dumps({"meta": meta})}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    return file


def write_stage(folder: Path) -> Path:
    """Write what of the first stage of a sequence names the second."""
    found = resolve(composed(f"store={folder.parent}", *SEQUENCE, "task=toy_film"), CONTEXT)
    folder.mkdir()
    OmegaConf.save(found.cfg, folder / "config.yaml")
    write_json(
        folder / "status.json", {"id": "first", "model": "tiny", "same_outcome": "0123456789"}
    )
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
    assert named.id == "toy_film-tiny-random-s0.01-seed13-5ee0018a71"
    assert named.same_but_task == "934d248b37"
    assert named.same_but_seed == "865f948382"


def test_id_of_stored_grafts(identity, tmp_path: Path) -> None:
    files = [write_graft(tmp_path / task, task) for task in ("toy_film", "toy_topic")]
    named = identity("graft=file", f"graft.paths=[{files[0]},{files[1]}]")
    assert named.id == "toy_film-tiny-file-seed13-3095df0a57"
    assert named.same_but_seed == "e33e7daa99"
    assert named.finetuned == identity().finetuned


def test_id_of_a_later_stage_of_a_sequence(identity, tmp_path: Path) -> None:
    first = write_stage(tmp_path / "first")
    named = identity(*SEQUENCE, "task=toy_topic", f"continual.init_from={first}")
    assert named.id == "toy_topic-tiny-learned-s0.01-seed13-d854146fa6"
    assert named.same_outcome == "7dee945b41"
    assert named.stage == "15e7fee51d:toy_film>toy_topic"
