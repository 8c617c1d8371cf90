"""A graft as a checkpoint that other tools load, and a graft of two checkpoints; by the installed command."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, pipeline

import models
from runs import TINY, command, grafts, make
from skillgraft import load_applied
from skillgraft.config import packages
from skillgraft.core.graft import Graft, same_tensors, union
from skillgraft.core.graft_facts import tasks_of
from skillgraft.evaluation import prediction_files
from skillgraft.export import checkpoints, extraction
from skillgraft.runtime import files
from skillgraft.runtime.errors import InputError

BASE = packages.package_path("package:skillgraft/embedded/model", "model.path")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, undrawn: None) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    return make(folder / "runs", *TINY, "graft=movement")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """The fine-tuned model of the same run as a checkpoint: a graft of everything."""
    everything = make(folder / "runs", *TINY, "graft=movement", "sparsity=1")
    code, output = grafts("apply", str(everything), "--out", str(folder / "whole"))
    assert code == 0, output
    return folder / "whole"


def test_apply_writes_a_checkpoint_that_transformers_loads(folder: Path, run: Path) -> None:
    out = folder / "applied"
    done = command("apply", str(run), "--out", str(out), cwd=folder, program="grafts")
    assert done.returncode == 0, done.stderr
    graft = Graft.load(run / "graft.safetensors")
    wanted = graft.apply(AutoModelForMaskedLM.from_pretrained(BASE, dtype=torch.float32))
    found = AutoModelForMaskedLM.from_pretrained(out)
    assert same_tensors(found.state_dict(), wanted.state_dict())
    guess = pipeline("fill-mask", model=str(out))
    mask = AutoTokenizer.from_pretrained(out).mask_token
    assert guess(f"a {mask} film")[0]["score"] > 0
    assert "toy_film" in (out / "README.md").read_text()
    code, output = grafts("apply", str(run), "--out", str(out))
    assert code == 1
    assert "not empty" in output


def test_a_graft_file_alone_wants_its_model_named(folder: Path, run: Path) -> None:
    file = folder / "alone" / "graft.safetensors"
    file.parent.mkdir()
    file.write_bytes((run / "graft.safetensors").read_bytes())
    x, y = str(folder / "x"), str(folder / "y")
    code, output = grafts("apply", str(file), "--out", x)
    assert code == 1
    assert "--model" in output
    code, output = grafts("apply", str(file), "--model", str(BASE), "--out", x)
    assert code == 0, output
    code, output = grafts("apply", str(file), "--model", x, "--out", y)
    assert code == 1  # grafted already: no longer the base
    assert "not those of the graft's base" in output
    assert not (folder / "y").exists()


def texts_of(run: Path, *overrides: str) -> tuple[list[str], np.ndarray]:
    """Return the test texts of a run, and what its graft made of them."""
    from runs import expanded
    from skillgraft.tasks import loading

    frame = pd.read_parquet(run / "predictions.parquet")
    stored = prediction_files.from_frame(
        frame[(frame["model"] == "graft") & (frame["split"] == "test")]
    )
    return [row.text for row in loading.load(expanded(*overrides)).test], stored["graft"]["test"]


def test_a_linear_head_goes_beside_the_encoder(folder: Path) -> None:
    """By the card's own lines, with skillgraft and without: the probabilities that the run has stored."""
    run = make(folder / "runs", *TINY, "graft=movement", "finetune=linear")
    out = folder / "linear"
    code, output = grafts("apply", str(run), "--out", str(out))
    assert code == 0, output
    assert {file.stat().st_mode for file in out.iterdir()} == {
        (run / "metrics.json").stat().st_mode
    }
    with_it, without = (
        part.split("```")[0] for part in (out / "README.md").read_text().split("```python\n")[1:]
    )
    texts, stored = texts_of(run, *TINY, "finetune=linear")
    names = {"folder": out}
    exec(with_it, names)
    assert names["probabilities"].shape == (2, 2)
    classify = names["classify"]
    assert classify.labels == ["negative", "positive"]
    assert np.array_equal(classify(texts), stored)  # the same batches: the same bits
    tokenizer, found = AutoTokenizer.from_pretrained(out), []
    for text in texts:
        batch = tokenizer(text, return_tensors="pt", truncation=True, max_length=64)
        names = {"AutoModel": AutoModel, "load_file": load_file, "torch": torch}
        names |= {"folder": out, "batch": batch}
        with torch.no_grad():
            exec(without, names)
        found.append(names["logits"].softmax(-1)[0])
    assert torch.stack(found).numpy() == pytest.approx(stored, abs=1e-5)


@pytest.mark.parametrize("pool", ["first", "mask"])
def test_other_pools(folder: Path, pool: str) -> None:
    run = make(folder / "runs", *TINY, "graft=movement", "finetune=linear", f"finetune.pool={pool}")
    record = OmegaConf.load(run / "config.yaml")
    graft = Graft.load(run / "graft.safetensors")
    out = checkpoints.write_checkpoint(graft, BASE, folder / pool, record)
    texts, stored = texts_of(run, *TINY, "finetune=linear")
    assert np.array_equal(load_applied(out)(texts), stored)
    alone = checkpoints.write_checkpoint(graft, BASE, folder / f"{pool}-alone")
    if pool == "first":  # no template needed
        assert load_applied(alone)(texts) == pytest.approx(stored, abs=1e-6)
    else:
        with pytest.raises(InputError, match="template is not known"):
            load_applied(alone)


def test_a_prompt_classifies_too(folder: Path, run: Path) -> None:
    out = checkpoints.write_checkpoint(
        Graft.load(run / "graft.safetensors"),
        BASE,
        folder / "p",
        OmegaConf.load(run / "config.yaml"),
    )
    texts, stored = texts_of(run, *TINY)
    assert np.array_equal(load_applied(out)(texts), stored)
    with pytest.raises(InputError, match=r"no skillgraft\.json"):
        load_applied(BASE)
    # without its run, how it is asked is not known, and its card does not say otherwise
    alone = checkpoints.write_checkpoint(
        Graft.load(run / "graft.safetensors"), BASE, folder / "p-alone"
    )
    cards = [(place / "README.md").read_text() for place in (out, alone)]
    assert ["load_applied" in card for card in cards] == [True, False]


@pytest.mark.parametrize("family", ["deberta", "gpt2", "bert"])
def test_a_graft_of_two_checkpoints_on_every_kind_of_model(tmp_path: Path, family: str) -> None:
    """Whatever class the files fill, without attention that is not there or a head that is made up."""
    head = family != "bert"  # an encoder alone
    before, after = (
        models.checkpoint(tmp_path / str(seed), family, head=head, seed=seed) for seed in (0, 1)
    )
    graft = extraction.extract(before, after, "movement", 0.1)
    for name in ("a", "b"):  # nothing random goes in
        checkpoints.write_checkpoint(graft, before, tmp_path / name)
    a, b, theirs = (load_file(tmp_path / f / "model.safetensors") for f in ("a", "b", "0"))
    assert same_tensors(a, b)
    assert set(a) <= set(theirs)
    assert sum(int((a[name] != theirs[name]).sum()) for name in a) == graft.size
    assert not (tmp_path / "a" / "skillgraft.json").exists()


def test_a_task_vector_added_to_the_base_is_the_grafted_model(folder: Path, run: Path) -> None:
    """Zero outside the region; inside exact where θ_ft − θ_pre is, which Sterbenz's lemma says.

    Elsewhere the difference is rounded to half a unit in its last place and the sum to another half,
    so that they miss θ_ft by an ulp of the largest of the three at most.
    """
    code, output = grafts("apply", str(run), "--delta", "--out", str(folder / "delta"))
    assert code == 0, output
    graft = Graft.load(run / "graft.safetensors")
    base = AutoModelForMaskedLM.from_pretrained(BASE, dtype=torch.float32)
    delta = AutoModelForMaskedLM.from_pretrained(folder / "delta", dtype=torch.float32).state_dict()
    assert set(delta) == set(base.state_dict())
    summed = {name: tensor + delta[name] for name, tensor in base.state_dict().items()}
    grafted = graft.apply(base).state_dict()
    exact = total = 0
    for name, tensor in grafted.items():
        key = name.removeprefix("bert.")
        index = graft.indices.get(key, torch.empty(0, dtype=torch.int64))
        outside = torch.ones(tensor.numel(), dtype=torch.bool).index_fill_(0, index, 0)
        assert not delta[name].view(-1)[outside].any()
        assert torch.equal(summed[name].view(-1)[outside], tensor.view(-1)[outside])
        if not index.numel():
            continue
        pre, after, got = graft.pretrained[key], graft.values[key], summed[name].view(-1)[index]
        lemma = (pre * after > 0) & (pre.abs() <= 2 * after.abs()) & (after.abs() <= 2 * pre.abs())
        assert torch.equal(got[lemma], after[lemma])
        largest = torch.stack([pre, after, after - pre]).abs().max(0).values
        assert bool(((got - after).abs() <= largest * 2.0**-23).all())
        exact, total = exact + int(lemma.sum()), total + index.numel()
    assert total == graft.size
    assert exact > total / 2
    assert "task vector" in (folder / "delta" / "README.md").read_text()


def test_two_checkpoints_to_a_pipeline(folder: Path, whole: Path) -> None:
    graft = extraction.extract(BASE, whole, "movement", 1)
    checkpoints.write_checkpoint(graft, BASE, folder / "all")
    asked = "a warm and funny film . it was [MASK] ."
    found, wanted = (
        pipeline("fill-mask", model=str(path))(asked) for path in (folder / "all", whole)
    )
    assert found == wanted


def test_extract_finds_the_movement_region_of_two_checkpoints(
    folder: Path, run: Path, whole: Path
) -> None:
    file = str(folder / "e.safetensors")
    code, output = grafts("extract", str(BASE), str(whole), "--sparsity", "1e-2", "--out", file)
    assert code == 0, output
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
    file = str(folder / f"{selector}.safetensors")
    options = ("--selector", selector, "--sparsity", "1e-3", "--out", file)
    code, output = grafts("extract", str(BASE), str(whole), *options)
    assert code == 0, output
    graft = Graft.load(file)
    assert graft.size == round(1e-3 * graft.graftable)
    code, output = grafts("extract", str(BASE), str(whole), *options)
    assert code == 1
    assert "already exists" in output


def test_bad_pairs_of_checkpoints_are_one_line(folder: Path, whole: Path) -> None:
    for arguments, words in (
        ((str(folder), str(whole)), "no config.json"),
        ((str(BASE), str(whole), "--graftable", "nothing"), "no graftable parameter"),
        ((str(BASE), str(whole), "--selector", "learned"), "expected one of movement"),
        ((str(BASE), str(whole), "--sparsity", "2"), "expected 0 to 1"),
    ):
        code, output = grafts("extract", *arguments, "--out", str(folder / "n.safetensors"))
        assert code == 1
        assert output.startswith("grafts: ")
        assert words in output
        assert output.count("\n") == 1


def test_the_readmes_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = readme.split("<!-- serve -->\n```python\n")[1].split("```")[0]
    base = AutoModelForMaskedLM.from_pretrained(BASE, dtype=torch.float32)
    before = {n: p.detach() for n, p in base.named_parameters() if ".layer." in n}
    skills = {}
    for seed, name in enumerate(("sst2", "agnews")):
        generator = torch.Generator().manual_seed(seed)
        after = {n: p + torch.randn(p.shape, generator=generator) for n, p in before.items()}
        skills[name] = Graft.take(torch.arange(seed, 9000, 2 - seed), before, after)
        skills[name].save(tmp_path / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code.replace('"roberta-base"', repr(str(BASE))), names)
    text, seen = "a warm and funny film . it was *mask* .", []
    for chosen in ([], ["sst2"], ["agnews"], ["sst2", "agnews"], []):
        graft = union([skills[name] for name in chosen]) if chosen else None
        model = copy.deepcopy(base)
        guess = pipeline(
            "fill-mask", model=graft.apply(model) if graft else model,
            tokenizer=AutoTokenizer.from_pretrained(BASE),
        )  # fmt: skip
        seen.append(names["answer"](text, *chosen))
        assert seen[-1] == guess(text.replace("*mask*", "[MASK]"))
    assert seen[0] == seen[-1]
    assert all(seen[i] != seen[j] for i in range(4) for j in range(i))


def test_overlap_and_combine(folder: Path, run: Path) -> None:
    other = make(folder / "runs", *TINY, "graft=movement", "task=toy_book")
    code, output = grafts("overlap", str(run), str(other), "--json")
    assert code == 0, output
    (line,) = json.loads(output)
    a, b = (Graft.load(path / "graft.safetensors") for path in (run, other))
    assert line["iou"] == pytest.approx(a.iou(b))
    file = str(folder / "both.safetensors")
    code, output = grafts("combine", str(run), str(other), "--out", file)
    assert code == 0, output
    both = Graft.load(folder / "both.safetensors")
    assert same_tensors(both.values, (a | b).values)
    assert tasks_of(both) == ["toy_film", "toy_book"]
    options = (*TINY, "graft=file", "graft.combine=union")
    joined = make(folder / "runs", *options, f"graft.paths=[{folder / 'both.safetensors'}]")
    apart = make(folder / "runs", *options, f"graft.paths=[{run},{other}]")
    one, two = (files.read_json(path / "metrics.json")["graft"] for path in (joined, apart))
    assert one == two


def test_extract_names_what_is_not_a_number(folder: Path, whole: Path) -> None:
    broken = AutoModelForMaskedLM.from_pretrained(whole)
    with torch.no_grad():
        broken.base_model.encoder.layer[0].attention.self.query.weight[3, 5] = torch.nan
    broken.save_pretrained(folder / "broken")
    for selector in ("movement", "magnitude"):
        with pytest.raises(InputError, match=r"layer\.0\..*query\.weight: not a finite number in"):
            extraction.extract(BASE, folder / "broken", selector, 0.01)
