"""A graft as a checkpoint that other tools load, and a graft of two checkpoints; by the installed command."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from runs import TINY, command, make
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, pipeline

from skillgraft import config, evaluate
from skillgraft.graft import Graft, same

BASE = config.package_path("package:skillgraft/embedded/model", "model.path")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    return make(folder / "runs", *TINY, "graft=movement")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """The fine-tuned model of the same run as a checkpoint: a graft of everything."""
    everything = make(folder / "runs", *TINY, "graft=movement", "sparsity=1")
    done = command("apply", str(everything), "--out", "whole", cwd=folder, program="grafts")
    assert done.returncode == 0, done.stderr
    return folder / "whole"


def test_apply_writes_a_checkpoint_that_transformers_loads(folder: Path, run: Path) -> None:
    out = folder / "applied"
    done = command("apply", str(run), "--out", str(out), cwd=folder, program="grafts")
    assert done.returncode == 0, done.stderr
    graft = Graft.load(run / "graft.safetensors")
    wanted = graft.apply(AutoModelForMaskedLM.from_pretrained(BASE, dtype=torch.float32))
    found = AutoModelForMaskedLM.from_pretrained(out)
    assert same(found.state_dict(), wanted.state_dict())
    guess = pipeline("fill-mask", model=str(out))
    mask = AutoTokenizer.from_pretrained(out).mask_token
    assert guess(f"a {mask} film")[0]["score"] > 0
    assert "toy_film" in (out / "README.md").read_text()
    again = command("apply", str(run), "--out", str(out), cwd=folder, program="grafts")
    assert again.returncode == 1
    assert "not empty" in again.stderr


def test_a_graft_file_alone_wants_its_model_named(folder: Path, run: Path) -> None:
    file = folder / "alone" / "graft.safetensors"
    file.parent.mkdir()
    file.write_bytes((run / "graft.safetensors").read_bytes())
    lost = command("apply", str(file), "--out", "x", cwd=folder, program="grafts")
    assert lost.returncode == 1
    assert "--model" in lost.stderr
    done = command(
        "apply", str(file), "--model", str(BASE), "--out", "x", cwd=folder, program="grafts"
    )
    assert done.returncode == 0, done.stderr
    wrong = command("apply", str(file), "--model", "x", "--out", "y", cwd=folder, program="grafts")
    assert wrong.returncode == 1  # grafted already: no longer the base
    assert "not those of the graft's base" in wrong.stderr
    assert not (folder / "y").exists()


def test_a_linear_head_goes_beside_the_encoder(folder: Path) -> None:
    """By the card's own three lines: the probabilities that the run has stored."""
    run = make(folder / "runs", *TINY, "graft=movement", "finetune=linear")
    out = folder / "linear"
    done = command("apply", str(run), "--out", str(out), cwd=folder, program="grafts")
    assert done.returncode == 0, done.stderr
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    rows = pd.read_parquet(run / "predictions.parquet").query(
        "model == 'graft' and split == 'test'"
    )
    from runs import composed

    from skillgraft import data, prompt

    cfg = composed(*TINY, "finetune=linear")
    cfg.task.verbalizer = config.verbalizer(cfg.task)
    texts = data.load(cfg).test
    tokenizer = AutoTokenizer.from_pretrained(out)
    encoded = [prompt.make_encoder(cfg, tokenizer, 128)([row])[0] for row in texts]
    found = []
    for row in encoded:
        batch = {
            name: t
            for name, t in prompt.collate([row], 0).items()
            if name in ("input_ids", "attention_mask", "token_type_ids")
        }
        names = {
            "AutoModel": AutoModel,
            "load_file": load_file,
            "torch": torch,
            "folder": out,
            "batch": batch,
        }
        with torch.no_grad():
            exec(code, names)
        found.append(names["logits"].softmax(-1)[0])
    stored = evaluate.from_frame(rows)["graft"]["test"]
    assert torch.stack(found).numpy() == pytest.approx(stored, abs=1e-5)


def test_extract_finds_the_movement_region_of_two_checkpoints(
    folder: Path, run: Path, whole: Path
) -> None:
    done = command(
        "extract", str(BASE), str(whole), "--sparsity", "1e-2", "--out", "e.safetensors",
        cwd=folder, program="grafts",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, wanted = Graft.load(folder / "e.safetensors"), Graft.load(run / "graft.safetensors")
    assert found.base == wanted.base
    assert found.size == wanted.size
    assert found.iou(wanted) == pytest.approx(1, abs=1e-3)  # ties at the threshold alone may differ
    shared = {
        name: torch.isin(index, wanted.indices[name]) for name, index in found.indices.items()
    }
    there = {name: torch.isin(index, found.indices[name]) for name, index in wanted.indices.items()}
    for name, values in found.values.items():
        assert torch.equal(values[shared[name]], wanted.values[name][there[name]])


@pytest.mark.parametrize("selector", ["magnitude", "random"])
def test_extract_by_other_selectors_without_data(folder: Path, whole: Path, selector: str) -> None:
    file = f"{selector}.safetensors"
    options = ("--selector", selector, "--sparsity", "1e-3", "--out", file)
    done = command("extract", str(BASE), str(whole), *options, cwd=folder, program="grafts")
    assert done.returncode == 0, done.stderr
    graft = Graft.load(folder / file)
    assert graft.size == round(1e-3 * graft.graftable)
    again = command("extract", str(BASE), str(whole), *options, cwd=folder, program="grafts")
    assert again.returncode == 1
    assert "is there already" in again.stderr


def test_bad_pairs_of_checkpoints_are_one_line(folder: Path, whole: Path) -> None:
    for arguments, words in (
        ((str(folder), str(whole)), "no config.json"),
        ((str(BASE), str(whole), "--graftable", "nothing"), "no graftable parameter"),
        ((str(BASE), str(whole), "--selector", "learned"), "expected one of movement"),
        ((str(BASE), str(whole), "--sparsity", "2"), "expected 0 to 1"),
    ):
        done = command(
            "extract", *arguments, "--out", "n.safetensors", cwd=folder, program="grafts"
        )
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_overlap_and_combine(folder: Path, run: Path) -> None:
    other = make(folder / "runs", *TINY, "graft=movement", "task=toy_book")
    shown = command("overlap", str(run), str(other), "--json", cwd=folder, program="grafts")
    assert shown.returncode == 0, shown.stderr
    (line,) = json.loads(shown.stdout)
    a, b = (Graft.load(path / "graft.safetensors") for path in (run, other))
    assert line["iou"] == pytest.approx(a.iou(b))
    done = command(
        "combine", str(run), str(other), "--out", "both.safetensors", cwd=folder, program="grafts"
    )
    assert done.returncode == 0, done.stderr
    both = Graft.load(folder / "both.safetensors")
    assert same(both.values, (a | b).values)
    assert both.tasks == ["toy_film", "toy_book"]
