"""One fine-tuning on several tasks, a region a task, and stored grafts evaluated on any of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from runs import TINY, make, results
from skillgraft.config.schema import RunConfig
from skillgraft.core.graft import Graft, intersection, union
from skillgraft.experiments import rerun
from skillgraft.runtime import files
from skillgraft.runtime.errors import GraftError, InputError
from skillgraft.store.folders import Store
from skillgraft.tasks import loading
from skillgraft.tasks.rows import TaskData

pytestmark = pytest.mark.usefixtures("undrawn")

TASKS = ("toy_film", "toy_topic", "toy_para")  # of two, of more and of F1's classes
MIX = (*TINY, "finetune=multitask", f"finetune.tasks=[{','.join(TASKS)}]", "finetune.steps=6")
MOVED = (*MIX, "graft=movement")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def runs(place: Path, undrawn: None) -> dict[str, Path]:
    """A run a task, of attribution, so that the regions differ."""
    options = (*MIX, "graft=attribution", "graft.examples_per_step=8", "graft.batch_size=4")
    return {task: make(place, *options, f"task={task}") for task in TASKS}


def metrics_of(folder: Path) -> dict[str, Any]:
    return files.read_json(folder / "metrics.json")


def plain(measured: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in measured.items() if k not in ("agreement", "relative_gain")}


def test_tasks_share_one_fine_tuning(place: Path, runs: dict[str, Path]) -> None:
    assert len(list((place / ".finetuned").iterdir())) == 1
    seconds = [files.read_json(run / "provenance.json")["seconds"] for run in runs.values()]
    assert ["finetune" in s for s in seconds] == [True, False, False]


def test_every_run_is_measured_on_every_task(runs: dict[str, Path]) -> None:
    """What one run says of another's task is what that run says of its own."""
    for task, run in runs.items():
        metrics = metrics_of(run)
        for model in ("pretrained", "finetuned", "graft"):
            others = {f"tasks/{name}" for name in TASKS if name != task}
            assert set(metrics[model]) == {"validation", "test", *others}
        for other in set(TASKS) - {task}:
            theirs = metrics_of(runs[other])
            for model in ("pretrained", "finetuned"):
                assert metrics[model][f"tasks/{other}"] == theirs[model]["test"]
            assert ("f1" in metrics["graft"][f"tasks/{other}"]) == (other == "toy_para")
            frame = pd.read_parquet(run / f"predictions-{other}.parquet")
            assert set(frame["split"]) == {"test"}
            assert set(frame["model"]) == {"pretrained", "finetuned", "graft"}


def test_changed_rows_of_another_task_are_named_before_a_rerun(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, scratch = runs["toy_film"], Store(tmp_path)
    assert rerun.inputs(run, scratch) == []
    load = loading.load

    def changed(cfg: RunConfig) -> TaskData:
        rows = load(cfg)
        others = dict(rows.others)
        others["toy_topic"] = replace(others["toy_topic"], train=others["toy_topic"].train[::-1])
        return replace(rows, others=others)

    monkeypatch.setattr(loading, "load", changed)
    assert [difference.what for difference in rerun.inputs(run, scratch)] == [
        "digest of data of toy_topic"
    ]
    old = shutil.copytree(run, tmp_path / run.name)  # of a version that did not record them
    facts = files.read_json(old / "provenance.json")
    facts["digests"] = {n: d for n, d in facts["digests"].items() if not n.startswith("data of")}
    files.write_json(old / "provenance.json", facts)
    assert rerun.inputs(old, scratch) == []


def test_the_regions_are_compared(runs: dict[str, Path]) -> None:
    overlap = files.read_json(runs["toy_para"] / "overlap.json")
    assert set(overlap) == {"toy_film", "toy_topic"}
    for other, entry in overlap.items():
        a, b = (Graft.load(runs[t] / "graft.safetensors") for t in ("toy_para", other))
        assert entry["iou"] == a.iou(b)
        assert 0 < entry["iou"] < 1


def test_whichever_task_comes_first(runs: dict[str, Path], tmp_path: Path) -> None:
    options = (*MIX, "graft=attribution", "graft.examples_per_step=8", "graft.batch_size=4")
    other = make(tmp_path, *options, "task=toy_para")
    assert other.name == runs["toy_para"].name
    assert results(other) == results(runs["toy_para"])


def test_the_same_task_twice_overlaps_entirely(tmp_path: Path) -> None:
    import json

    from skillgraft.embedded import generator

    for split in ("train", "test"):
        lines = [json.dumps(row) for row in generator.rows("toy_film", split)[:60]]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    options = (
        *(o for o in TINY if o != "task.ood=[]"), "graft=movement", "task=custom",
        f"task.train={tmp_path}/train.jsonl", f"task.test={tmp_path}/test.jsonl",
        "task.template='*text* it was *mask* .'", "task.labels=[negative,positive]",
        "task.verbalizer=[terrible,great]",
    )  # fmt: skip
    one, two = (make(tmp_path / "runs", *options, f"task.name={name}") for name in ("one", "two"))
    entry = files.read_json(two / "overlap.json")["one"]
    assert (entry["iou"], entry["a_in_b"], entry["b_in_a"]) == (1, 1, 1)
    assert entry["run"] == one.name


# ------------------------------------------------------------------------------- stored grafts


def joined(place: Path, task: str, paths: list[str], *more: str) -> Path:
    named = f"graft.paths=[{','.join(paths)}]"
    return make(
        place, *MIX, f"task={task}", "graft=file", "graft.paths_selector=attribution", named, *more
    )


@pytest.mark.parametrize("rule", ["union", "intersection"])
def test_tasks_name_their_runs(place: Path, runs: dict[str, Path], rule: str) -> None:
    """The algebra of grafts, whether they are named by task, by run or by file."""
    pair = ["toy_film", "toy_topic"]
    folder = joined(place, "toy_para", pair, f"graft.combine={rule}")
    a, b = (Graft.load(runs[task] / "graft.safetensors") for task in pair)
    expected = a | b if rule == "union" else a & b
    graft = Graft.load(folder / "graft.safetensors")
    assert torch.equal(graft.region(), expected.region())
    for name, values in expected.values.items():
        assert torch.equal(graft.values[name], values)
    assert [p["task"] for p in graft.meta["parents"]] == pair
    assert (graft.meta["task"], graft.meta["run"]) == ("toy_para", folder.name)
    by_id = [runs[pair[0]].name, str(runs[pair[1]] / "graft.safetensors")]
    assert joined(place, "toy_para", by_id, f"graft.combine={rule}") == folder
    metrics, theirs = metrics_of(folder), metrics_of(runs["toy_para"])
    assert metrics["finetuned"] == theirs["finetuned"]
    assert metrics["region"]["size"] == expected.size


def test_a_single_graft_on_another_task(place: Path, runs: dict[str, Path]) -> None:
    folder = joined(place, "toy_topic", ["toy_film"])
    expected = metrics_of(runs["toy_film"])["graft"]["tasks/toy_topic"]
    assert metrics_of(folder)["graft"]["test"] == expected
    assert "sparsity" in files.read_json(folder / "status.json")


def test_the_union_trained_inside(place: Path, runs: dict[str, Path]) -> None:
    folder = joined(place, "toy_film", list(TASKS), "compare.inside_steps=[3]")
    metrics = metrics_of(folder)
    assert set(metrics["inside_3"]) == set(metrics["graft"])
    assert metrics["inside_3"]["test"] != metrics["graft"]["test"]


def test_seeds_of_one_union_are_one_setting(place: Path, runs: dict[str, Path]) -> None:
    """Other seeds have other graft files; tables average over them all the same."""
    settings = []
    for seed in (13, 21):
        options = (*MOVED, f"seed={seed}", "finetune.steps=3")
        for task in TASKS[:2]:
            make(place, *options, f"task={task}")
        folder = make(
            place, *MIX, f"seed={seed}", "finetune.steps=3", "graft=file", "graft.paths_selector=movement",
            "graft.paths=[toy_film,toy_topic]",
        )  # fmt: skip
        settings.append(files.read_json(folder / "status.json")["same_but_seed"])
    assert settings[0] == settings[1]
    other = joined(
        place,
        "toy_film",
        ["toy_film"],
        "seed=21",
        "graft.paths_selector=movement",
        "finetune.steps=3",
    )
    assert files.read_json(other / "status.json")["same_but_seed"] != settings[0]


def test_a_wrong_base_is_one_line(place: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    graft = Graft.load(runs["toy_film"] / "graft.safetensors")
    from dataclasses import replace

    other = replace(graft, base="0" * 64, meta={"model": "another"}).save(
        tmp_path / "a.safetensors"
    )
    for paths in ([str(other)], ["toy_film", str(other)]):
        with pytest.raises(InputError, match=r"graft.paths: .*a.safetensors: its base .*another"):
            joined(tmp_path / "runs" if len(paths) == 1 else place, "toy_topic", paths)
    assert not (tmp_path / "runs" / ".finetuned").exists()  # said before anything is trained


def test_bad_paths_are_one_line(place: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no tensors")
    make(place, *MIX, "graft=attribution", "graft.examples_per_step=4", "graft.batch_size=4")
    for paths, words in (
        ([], ["graft.paths", "needs the files"]),
        (["nowhere"], ["graft.paths: nowhere", "no file", "no run", "found none"]),
        (["toy_subj"], ["graft.paths: toy_subj", "found none"]),
        ([f"{tmp_path}/empty"], [f"{tmp_path}/empty", "no graft file"]),
        ([f"{tmp_path}/text"], ["graft.paths", "not a complete safetensors file"]),
        (
            ["toy_film"],
            ["graft.paths: toy_film", "expected one complete run", "found toy_film-tiny"],
        ),
    ):
        with pytest.raises(InputError) as caught:
            joined(place, "toy_topic", paths)
        assert "\n" not in str(caught.value)
        for word in words:
            assert word in str(caught.value)


# ---------------------------------------------------------------------------- the algebra of many


def graft_of(where: list[int], values: list[float], task: str = "a", base: float = 0.0) -> Graft:
    before = {"w": torch.full((8,), base), "b": torch.full((2,), base)}
    after = {n: t.clone() for n, t in before.items()}
    for index, value in zip(where, values, strict=True):
        after["w" if index < 8 else "b"][index % 8] = value
    return Graft.take(torch.tensor(where), before, after, {"task": task})


def test_a_union_of_many_takes_the_mean_of_all() -> None:
    """a | b | c would weigh c as much as a and b together."""
    grafts = [graft_of([0, 2, 9], [1, 4, 5]), graft_of([2, 3], [7, 3]), graft_of([2], [1])]
    every = union(grafts)
    assert every.region().tolist() == [0, 2, 3, 9]
    assert torch.cat([every.values["w"], every.values["b"]]).tolist() == [1, 4, 3, 5]
    for order in ([1, 2, 0], [2, 1, 0]):
        again = union([grafts[i] for i in order])
        assert torch.equal(again.region(), every.region())
        assert all(torch.equal(again.values[n], v) for n, v in every.values.items())
    both = intersection(grafts)
    assert both.region().tolist() == [2]
    assert both.values["w"].tolist() == [4]
    with pytest.raises(GraftError, match="different base"):
        union([*grafts, graft_of([0], [1], base=1.0)])
