"""Sequences of tasks: each stage starts from what the last one left, and keeps off its region."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from runs import FEW, TINY, composed, expanded, make, refused, results
from skillgraft.core.graft import Graft
from skillgraft.evaluation import predict
from skillgraft.experiments.stages import evaluate
from skillgraft.runtime import files
from skillgraft.runtime.errors import InputError
from skillgraft.store import sequences
from skillgraft.tasks import loading
from test_training import Killed

pytestmark = pytest.mark.usefixtures("undrawn")

TASKS = ("toy_film", "toy_topic", "toy_para")
SEQUENCE = (*TINY, f"continual.tasks=[{','.join(TASKS)}]", "finetune.lr=0.1")
MOVED = (*SEQUENCE, "graft=movement", "sparsity=0.02")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def stages(place: Path, undrawn: None) -> list[Path]:
    return [make(place, *MOVED, f"task={task}") for task in TASKS]


@pytest.fixture(scope="module")
def plain(place: Path, stages: list[Path]) -> list[Path]:
    """The same sequence without grafting: each stage starts from the last one's θ_ft."""
    return [make(place, *MOVED, f"task={task}", "continual.carry=finetuned") for task in TASKS]


def metrics_of(folder: Path) -> dict[str, Any]:
    return files.read_json(folder / "metrics.json")


def graft_of(folder: Path) -> Graft:
    return Graft.load(folder / "graft.safetensors")


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    digest = files.read_json(folder / "status.json")["finetuned"]
    return load_file(folder.parent / ".finetuned" / digest / "weights.safetensors")


def bare(measured: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in measured.items() if k not in ("agreement", "relative_gain")}


def test_a_first_stage_that_is_measured_on_more_is_the_same_stage(
    place: Path, stages: list[Path]
) -> None:
    """A store may hold it twice, with and without OOD sets; the next stage is one run all the same."""
    twice = make(place, *MOVED, f"task={TASKS[0]}", "task.ood=[toy_film_slang]")
    try:
        assert twice != stages[0]
        assert make(place, *MOVED, f"task={TASKS[1]}") == stages[1]
    finally:
        shutil.rmtree(twice)


# -------------------------------------------------------------------------------- with grafts


def test_regions_are_kept_apart_and_have_the_asked_size(stages: list[Path]) -> None:
    grafts = [graft_of(stage) for stage in stages]
    assert len({graft.base for graft in grafts}) == 1  # all of one pre-trained model
    for i, graft in enumerate(grafts):
        assert graft.size == round(0.02 * graft.graftable)
        for other in grafts[:i]:
            assert graft.iou(other) == 0
    overlap = files.read_json(stages[2] / "overlap.json")
    assert {task: entry["iou"] for task, entry in overlap.items()} == {
        "toy_film": 0,
        "toy_topic": 0,
    }


def test_a_stage_starts_from_the_last_ones_graft(stages: list[Path]) -> None:
    for before, stage in pairwise(stages):
        task = files.read_json(before / "status.json")["task"]
        assert metrics_of(stage)["pretrained"][f"tasks/{task}"] == bare(
            metrics_of(before)["graft"]["test"]
        )


def test_a_sequence_is_the_pretrained_model_and_its_grafts(stages: list[Path]) -> None:
    """By another road: a fresh model, three graft files, every task's own words and metric."""
    from skillgraft.models import checkpoint_files, pretrained
    from skillgraft.tasks import encoder

    for task in TASKS:
        cfg = composed(*MOVED, f"task={task}")
        where = checkpoint_files.locate(cfg.model)
        tokenizer = pretrained.load_tokenizer(where)
        classifier = pretrained.load_model(cfg, where, tokenizer)
        for stage in stages:
            graft_of(stage).apply(classifier)
        rows = encoder.make_encoder(cfg, tokenizer, 128)(
            loading.load(expanded(*MOVED, f"task={task}")).test
        )
        expected = predict.predict(classifier, rows, tokenizer.pad_token_id, 64)
        own = task == TASKS[2]
        name = "predictions.parquet" if own else f"predictions-{task}.parquet"
        frame = pd.read_parquet(stages[2] / name).query("model == 'graft' and split == 'test'")
        columns = [c for c in frame if c.startswith("p/")]
        np.testing.assert_allclose(frame[columns].to_numpy(), expected, atol=1e-6)


def test_forgetting_can_be_read(stages: list[Path]) -> None:
    """A task's accuracy right after it less that at the end, for every task but the last."""
    last = metrics_of(stages[-1])["graft"]
    for stage, task in zip(stages[:-1], TASKS, strict=False):
        right_after, at_the_end = metrics_of(stage)["graft"]["test"], last[f"tasks/{task}"]
        assert 0 <= right_after["accuracy"] <= 1
        assert set(at_the_end) == set(right_after)
    assert {n for n in last if n.startswith("tasks/")} == {"tasks/toy_film", "tasks/toy_topic"}


def test_the_first_stage_is_an_ordinary_run(place: Path, stages: list[Path]) -> None:
    ordinary = (o for o in MOVED if not o.startswith("continual.tasks"))
    assert make(place, *ordinary, "task=toy_film") == stages[0]


def test_a_stage_may_name_the_run_before_it(place: Path, stages: list[Path]) -> None:
    options = [o for o in MOVED if not o.startswith("continual.tasks")]
    for after in (stages[0].name, str(stages[0])):
        assert make(place, *options, "task=toy_topic", f"continual.init_from={after}") == stages[1]


SELECTORS: dict[str, tuple[str, ...]] = {
    "random": ("graft=random",),
    "magnitude": ("graft=magnitude",),
    "attribution": ("graft=attribution", *FEW),
    "greedy": ("graft=attribution", "graft.greedy_rounds=2", *FEW),
    "fisher": ("graft=fisher", "graft.path_points=1", *FEW),
    "learned": ("graft=learned", "graft.steps=1", "graft.score_every=1", *FEW),
}


@pytest.mark.parametrize("selector", SELECTORS)
def test_every_selector_keeps_off_earlier_regions(
    place: Path, stages: list[Path], selector: str
) -> None:
    """And has the asked size: what is taken counts for nobody."""
    options = [o for o in MOVED if not o.startswith("continual.tasks")]
    options += [*SELECTORS[selector], "task=toy_topic", f"continual.init_from={stages[0].name}"]
    for sparsity in ("0.3", "1.0") if selector in ("magnitude", "attribution") else ("0.3",):
        folder = make(place, *options, f"sparsity={sparsity}")
        graft, taken = graft_of(folder), graft_of(stages[0])
        assert graft.iou(taken) == 0
        asked = min(round(float(sparsity) * graft.graftable), graft.graftable - taken.size)
        if selector != "learned":
            assert graft.size == asked


def test_comparison_models_of_a_stage(place: Path, stages: list[Path]) -> None:
    """θ_ft is the whole fine-tuned model, whatever is taken, and whoever has the region already."""
    folder = make(place, *MOVED, "task=toy_topic", "compare.wise_ft_alphas=[0,1]")
    metrics = metrics_of(folder)
    for model, end in (("wise_0", "pretrained"), ("wise_1", "finetuned")):
        for split, measured in metrics[model].items():
            assert bare(measured) == metrics[end][split]


def test_the_next_stage_does_not_depend_on_twins(place: Path, stages: list[Path]) -> None:
    """A run of the stage before with comparison models has left the same."""
    make(place, *MOVED, "task=toy_film", "compare.temperature=true")
    make(place, *MOVED, "task=toy_topic", "compare.temperature=true")
    for task, stage in zip(TASKS, stages, strict=True):
        assert make(place, *MOVED, f"task={task}") == stage


def test_a_task_that_comes_back(place: Path, stages: list[Path]) -> None:
    options = [o for o in MOVED if not o.startswith("continual.tasks")]
    folder = make(place, *options, "task=toy_film", f"continual.init_from={stages[1].name}")
    metrics = metrics_of(folder)
    assert set(metrics["graft"]) == {"validation", "test", "tasks/toy_topic"}
    assert metrics["pretrained"]["test"] == bare(metrics_of(stages[1])["graft"]["tasks/toy_film"])
    assert all(graft_of(folder).iou(graft_of(stage)) == 0 for stage in stages[:2])


def test_a_killed_stage_ends_with_the_same_bits(
    place: Path, stages: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in TASKS[:1]:
        make(tmp_path, *MOVED, f"task={task}")

    def dying(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "evaluate", dying)
        with pytest.raises(Killed):
            make(tmp_path, *MOVED, "task=toy_topic")
    again = make(tmp_path, *MOVED, "task=toy_topic")
    assert again.name == stages[1].name
    assert results(again) == results(stages[1])


def test_a_store_may_be_moved(place: Path, stages: list[Path], tmp_path: Path) -> None:
    """The stage before lies beside a run, wherever both are."""
    other = tmp_path / "moved"
    for path in stages:
        shutil.copytree(path, other / path.name)
    for folder in other.iterdir():  # as if the first place were gone
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(text.replace(str(place), "/gone"))
    cfg = composed(*MOVED, "task=toy_para", f"store={other}")
    cfg.continual.init_from = str(other / stages[2].name)
    assert [stage["folder"].name for stage in sequences.chain(cfg)] == [s.name for s in stages]
    shutil.rmtree(other / stages[0].name)
    with pytest.raises(InputError, match=r"continual.init_from: .* no complete run"):
        sequences.chain(cfg)


# --------------------------------------------------------------------- plain sequential fine-tuning


def test_plain_sequential_fine_tuning(stages: list[Path], plain: list[Path]) -> None:
    assert plain[0] == stages[0]  # nothing is taken of a stage before the first
    assert not set(plain[1:]) & set(stages)
    for before, stage in pairwise(plain):
        task = files.read_json(before / "status.json")["task"]
        metrics = metrics_of(stage)
        assert metrics["pretrained"][f"tasks/{task}"] == metrics_of(before)["finetuned"]["test"]
    left, start = weights_of(plain[0]), graft_of(plain[1])
    for name, index in start.indices.items():
        assert torch.equal(start.pretrained[name], left[name].take(index))
    assert start.size == round(0.02 * start.graftable)


def test_the_weights_that_a_plain_stage_starts_from_may_be_gone(
    plain: list[Path], place: Path, tmp_path: Path
) -> None:
    shutil.copytree(plain[0], tmp_path / plain[0].name)
    with pytest.raises(
        InputError, match=r"continual.init_from=.*its fine-tuned weights are not in"
    ):
        make(tmp_path, *MOVED, "task=toy_topic", "continual.carry=finetuned")
    other = make(
        tmp_path,
        *MOVED,
        "task=toy_topic",
        "continual.carry=finetuned",
        f"continual.init_from={plain[0]}",
    )  # found beside the run, in its own store
    assert other.name == plain[1].name
    assert results(other) == results(plain[1])


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("task=toy_topic",),
            ["continual.tasks", "the stage toy_film", "found none", "their order"],
        ),
        (("task=toy_subj",), ["continual.tasks=", "task.name=toy_subj among them"]),
        (
            ("task=toy_topic", "continual.tasks=[toy_topic,toy_film,toy_topic]"),
            ["continual.tasks=", "different tasks"],
        ),
        (("continual.init_from=nowhere",), ["continual.init_from=nowhere", "no complete run"]),
        (("finetune=linear",), ["continual.tasks", "do not share a linear head"]),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, options, words: list[str]) -> None:
    refused(tmp_path, words, *MOVED, *options)


def test_a_run_of_another_model_is_no_stage(place: Path, stages: list[Path]) -> None:
    with pytest.raises(InputError, match=r"continual.init_from=.*: a run of another model, tiny"):
        make(
            place,
            *MOVED,
            "task=toy_topic",
            f"continual.init_from={stages[0].name}",
            "model.name=other",
        )


def test_two_runs_that_could_be_the_stage_before(tmp_path: Path) -> None:
    """They differ in their test rows: one has to be named."""
    for rows in (12, 13):
        last = make(tmp_path, *MOVED, "task=toy_film", f"task.max_test_examples={rows}")
    with pytest.raises(
        InputError, match=r"continual.tasks: expected one complete run .* found toy_film"
    ):
        make(tmp_path, *MOVED, "task=toy_topic")
    make(tmp_path, *MOVED, "task=toy_topic", f"continual.init_from={last.name}")
