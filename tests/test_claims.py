"""Every claim on rows whose verdict is known by hand."""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from skillgraft.analysis import overlaps, plots
from skillgraft.analysis.claims import (
    bias_only,
    calibration,
    composition,
    continual,
    finding,
    judging,
    lottery,
    movement,
    ood,
    overlap,
    selection,
    sparsity_curve,
)
from skillgraft.analysis.claims.statements import ClaimResult, by_seed, single_runs
from skillgraft.config.schema import ClaimConfig
from skillgraft.core.graft import Graft
from skillgraft.runtime.errors import InputError
from skillgraft.runtime.files import read_json

SEEDS = (13, 21, 42, 87, 100)
WIGGLE = dict(zip(SEEDS, (-0.002, -0.001, 0.0, 0.001, 0.002), strict=True))  # between seeds


def row(seed: int, task: str = "a", **values: Any) -> dict[str, Any]:
    """Return one run as `collect.collect` gives it, its graft's score moved a little by the seed."""
    base: dict[str, Any] = {
        "seed": seed, "task": task, "selector": "learned", "sparsity": 1e-4,
        "region/size": 100, "region/sparsity": 1e-4, "stage": "x:a",
        "config/task.template": "*text* It was *mask*.", "config/finetune.trainable": "full",
        "pretrained/test/score": 0.5, "finetuned/test/score": 0.9, "graft/test/score": 0.88,
        "finetuned/test/ece": 0.10, "graft/test/ece": 0.04, "finetuned_temperature_scaled/test/ece": 0.03,
        "graft_temperature_scaled/test/ece": 0.03, "graft/test/agreement": 0.95,
        "graft/test/relative_gain": 0.9,
    }  # fmt: skip
    base |= values
    base["graft/test/score"] += WIGGLE[seed]
    base["graft/test/ece"] += WIGGLE[seed]
    return base


def rows(make: Callable[[int], list[dict[str, Any]]]) -> pd.DataFrame:
    return pd.DataFrame([run for seed in SEEDS for run in make(seed)])


def verdicts(outcome: ClaimResult) -> dict[str, str]:
    return {statement.text: statement.verdict for statement in outcome.statements}


def judged(name: str, frame: pd.DataFrame, tmp_path: Path, **options: Any) -> dict[str, str]:
    """Judge a claim, draw its figure, and return the verdicts."""
    outcome = finding.find_claim(name)(frame, ClaimConfig(name, **options))
    assert len(outcome.table)
    assert plots.save(outcome.draw(), tmp_path / "figure.svg").stat().st_size > 1000
    return verdicts(outcome)


def test_sparsity_curve(tmp_path: Path) -> None:
    def make(seed: int) -> list[dict[str, Any]]:
        small = {
            "sparsity": 1e-6,
            "region/size": 1,
            "region/sparsity": 1e-6,
            "graft/test/score": 0.6,
        }
        return [row(seed, task, **more) for task in "ab" for more in ({}, small)]

    names = (
        "learned graft ÷ fine-tuned at sparsity 1e-06 (1 parameters)",
        "learned graft ÷ fine-tuned at sparsity 0.0001 (100 parameters)",
    )
    for options in ({}, {"sparsity": 1e-4}):
        found = judged("sparsity_curve", rows(make), tmp_path, **options)
        assert found == dict(zip(names, ("does not hold", "holds"), strict=True))
    # the paper says nothing of larger regions than the one that its figure is tested at
    found = judged("sparsity_curve", rows(make), tmp_path, sparsity=1e-6)
    assert found == dict(zip(names, ("does not hold", "–"), strict=True))
    notes = sparsity_curve.judge(rows(make), ClaimConfig(sparsity=1e-4)).notes
    assert notes[0].endswith("2 of 2 tasks (a, b)")


def test_three_seeds_decide_nothing(tmp_path: Path) -> None:
    frame = rows(lambda seed: [row(seed)])
    few = frame[frame.seed.isin(SEEDS[:3])]
    assert set(judged("sparsity_curve", few, tmp_path).values()) == {"not decided"}


def test_a_seed_that_lacks_a_task_is_left_out() -> None:
    frame = rows(lambda seed: [row(seed, "a"), row(seed, "b", **{"graft/test/score": 0.5})])
    frame = frame[~((frame.seed == 100) & (frame.task == "b"))]
    found = by_seed(frame, "graft/test/score")
    assert set(found) == set(SEEDS) - {100}
    assert found[13] == pytest.approx(0.69 - 0.002)


def test_calibration(tmp_path: Path) -> None:
    found = list(judged("calibration", rows(lambda seed: [row(seed)]), tmp_path).values())
    assert found == ["holds", "holds", "does not hold", "does not hold"]


def test_more_than_the_paper_is_calibrated_too() -> None:
    """The range is the paper's; what is tested is its lower end, and the statement says so."""
    frame = rows(lambda seed: [row(seed, **{"finetuned/test/ece": 1.0})])  # 0.96 of it less
    first = calibration.judge(frame, ClaimConfig()).statements[0]
    assert (first.paper, first.verdict) == ("0.40 to 0.90 (here: > 0.40)", "holds")


def test_sparsities_are_judged_one_by_one(tmp_path: Path) -> None:
    """And no seed counts twice in Holm's tests: two seeds alone are not enough for these."""

    def make(seed: int) -> list[dict[str, Any]]:
        large = {"sparsity": 1e-2, "graft/test/ece": 0.2, "graft/ood/far/score": 0.5}
        far = {f"{model}/ood/far/score": 0.6 for model in ("pretrained", "finetuned")}
        return [row(seed, **far, **{"graft/ood/far/score": 0.9}), row(seed, **{**far, **large})]

    for name, text, large in (
        ("calibration", "ECE: fine-tuned − graft", "does not hold"),
        ("main_table", "single: ECE, fine-tuned − graft", "does not hold"),
        ("ood", "large shift: graft − fine-tuned", "does not hold"),
    ):
        options = {"large_shift": ["far"]} if name == "ood" else {}
        found = judged(name, rows(make), tmp_path, **options)
        assert found[f"{text} at sparsity 0.0001"] == "holds"
        assert found[f"{text} at sparsity 0.01"] == large
    notes = calibration.judge(rows(make), ClaimConfig()).notes
    assert [note.partition(": ")[2] for note in notes] == ["1 of 1 tasks (a)", "0 of 1 tasks"]


def test_another_axis_is_refused_by_name() -> None:
    """Pairs would be of runs of unlike settings, and a seed would count twice."""

    def make(seed: int) -> list[dict[str, Any]]:
        tickets = {"lottery_0/test/score": 0.5, "graft/ood/far/score": 0.5}
        tickets |= {f"{model}/ood/far/score": 0.6 for model in ("pretrained", "finetuned")}
        return [
            row(seed, selector=selector, **{"config/shots": shots, "regions": ["a"]}, **tickets)
            for shots in (16, 64)
            for selector in ("learned", "movement")
        ]

    for name in set(finding.names()) - {"overlap"}:
        frame = rows(make)
        if name in ("ood", "bias_only", "composition", "continual"):  # these have one selector
            frame = frame[frame.selector == "learned"]
        with pytest.raises(InputError, match=r"differ in shots: ") as caught:
            finding.find_claim(name)(frame, ClaimConfig(name))
        assert "\n" not in str(caught.value)
    frame = rows(make).assign(**{"config/finetune.trainable": ["bias", None] * 2 * len(SEEDS)})
    with pytest.raises(InputError, match="differ in shots: "):
        bias_only.judge(frame, ClaimConfig())
    with pytest.raises(InputError, match="differ in data or files: "):
        single_runs(rows(lambda seed: [row(seed)] * 2), "task")


def test_main_table(tmp_path: Path) -> None:
    pair = {"config/task.template": "*a*? *mask*, *b*", "graft/test/score": 0.8}
    frame = rows(lambda seed: [row(seed, **{"graft/test/score": 0.9}), row(seed, "b", **pair)])
    assert judged("main_table", frame, tmp_path) == {
        "single: graft − fine-tuned score": "holds",
        "single: ECE, fine-tuned − graft": "holds",
        "single: agreement": "holds",
        "pair: graft − fine-tuned score": "does not hold",
        "pair: ECE, fine-tuned − graft": "does not hold",
        "pair: agreement": "holds",
    }


def test_ood(tmp_path: Path) -> None:
    def make(seed: int) -> list[dict[str, Any]]:
        far = {f"{m}/ood/far/score": p for m, p in
               (("pretrained", 0.5), ("finetuned", 0.6), ("graft", 0.7 + WIGGLE[seed]))}  # fmt: skip
        near = {f"{m}/ood/near/score": 0.8 + WIGGLE[seed] for m in ("pretrained", "graft")}
        near["finetuned/ood/near/score"] = 0.8
        bias = {
            **far,
            **near,
            "config/finetune.trainable": "bias",
            "finetuned/ood/far/score": 0.5 + WIGGLE[seed],
        }
        return [row(seed, **far, **near), row(seed, **bias)]

    frame, options = rows(make), {"large_shift": ["far"], "small_shift": ["a/near"]}
    found = judged("ood", frame, tmp_path, **options)
    assert list(found.values()) == ["holds", "holds", "holds"]
    # a default is not among the values that name a run: without BitFit's runs there is no column
    full = frame[frame["config/finetune.trainable"] == "full"].drop(
        columns="config/finetune.trainable"
    )
    found = judged("ood", full, tmp_path, **options)
    assert list(found.values()) == ["holds", "holds", "not decided"]
    with pytest.raises(InputError, match=r"finetune\.trainable=full"):
        ood.judge(frame[frame["config/finetune.trainable"] == "bias"], ClaimConfig(**options))


def test_movement(tmp_path: Path) -> None:
    def make(seed: int) -> list[dict[str, Any]]:
        return [
            row(seed, selector=selector, sparsity=s, **{"graft/test/score": score, "region/sparsity": s})
            for s, selector, score in (
                (1e-5, "learned", 0.8), (1e-5, "movement", 0.6 - 2 * WIGGLE[seed]),
                (1e-3, "learned", 0.9), (1e-3, "movement", 0.8 - 2 * WIGGLE[seed]),
                (1e-2, "learned", 0.9), (1e-2, "movement", 0.9 - 2 * WIGGLE[seed]),
            )
        ]  # fmt: skip

    # the paper says nothing of what lies between its small regions and its largest
    assert list(judged("movement", rows(make), tmp_path).values()) == ["holds", "–", "holds"]
    found = judged("movement", rows(make), tmp_path, sparsity=1e-3)
    assert list(found.values()) == ["holds", "holds", "holds"]
    with pytest.raises(InputError, match="no learned run of this sweep has its movement run"):
        movement.judge(rows(lambda seed: [row(seed)]), ClaimConfig())


def test_lottery(tmp_path: Path) -> None:
    tickets = {"lottery_0/test/score": 0.5, "lottery_100/test/score": 0.85}
    frame = rows(lambda seed: [row(seed, **tickets)])
    found = judged("lottery", frame, tmp_path)
    assert found["ticket trained 0 steps ÷ fine-tuned, best sparsity"] == "holds"
    assert found["graft − untrained ticket"] == "holds"


def test_the_best_sparsity_is_of_seeds_that_have_all() -> None:
    tickets = {1e-4: 0.5, 1e-2: 0.8}

    def make(seed: int) -> list[dict[str, Any]]:
        return [row(seed, sparsity=s, **{"lottery_0/test/score": v}) for s, v in tickets.items()]

    frame = rows(make)
    frame = frame[~((frame.seed == 100) & (frame.sparsity == 1e-2))]
    first = lottery.judge(frame, ClaimConfig()).statements[0]
    assert first.values == pytest.approx(dict.fromkeys(SEEDS[:-1], 0.8 / 0.9))


def test_bias_only(tmp_path: Path) -> None:
    def make(seed: int) -> list[dict[str, Any]]:
        bias = {"config/finetune.trainable": "bias", "finetuned/test/score": 0.89 + WIGGLE[seed]}
        return [row(seed, selector="bias", **{"graft/test/score": 0.55}), row(seed, **bias)]

    frame = rows(make)
    assert list(judged("bias_only", frame, tmp_path).values())[1:] == ["holds", "holds"]
    full = frame[frame["config/finetune.trainable"] == "full"].drop(
        columns="config/finetune.trainable"
    )
    assert list(judged("bias_only", full, tmp_path).values())[1:] == ["not decided", "holds"]
    with pytest.raises(InputError, match=r"finetune\.trainable=full"):
        bias_only.judge(frame[frame["config/finetune.trainable"] == "bias"], ClaimConfig())


def test_adamw(tmp_path: Path) -> None:
    def make(seed: int) -> list[dict[str, Any]]:
        return [row(seed, **{"graft/test/score": 0.5}), row(seed, **{"config/finetune.l1": 0.2})]

    found = judged("adamw", rows(make), tmp_path)
    assert list(found.values()) == ["holds", "holds"]


IOU = {frozenset("ab"): 0.08, frozenset("ac"): 0.01, frozenset("bc"): 0.01}


def compared(seed: int, task: str, others: str, folder: Path, **values: Any) -> dict[str, Any]:
    """Return the run of a task that found those of other tasks whole when it ended."""
    for other in others:
        found = {"iou": IOU[frozenset((task, other))] + WIGGLE[seed], "chance": 0.001}
        found["run"] = f"{other}-{seed}"  # type: ignore[assignment]
        values |= {f"overlap/{other}/{name}": value for name, value in found.items()}
    own = {"id": f"{task}-{seed}", "region": f"{task}-{seed}", "same_but_task": f"p{seed}"}
    return row(seed, task, folder=str(folder / own["id"]), **{**own, **values})


def test_overlap(tmp_path: Path) -> None:
    frame = rows(
        lambda s: [compared(s, t, o, tmp_path) for t, o in (("a", ""), ("b", "a"), ("c", "ab"))]
    )
    found = judged("overlap", frame, tmp_path, similar=[["a", "b"]])
    assert found["learned: IoU of two tasks, mean of pairs"] == "holds"
    assert found["learned: IoU of similar − of other pairs"] == "holds"


def test_pairs_are_those_of_the_regions_whoever_ended_first(tmp_path: Path) -> None:
    """Runs that ended together have no record of each other; one made again has all of them."""
    regions = {"a": [0, 1, 2], "b": [1, 2, 3], "c": [2, 3, 4, 5]}
    before = {"layer.0.weight": torch.zeros(10)}
    for task, seed in itertools.product(regions, SEEDS):
        folder = tmp_path / f"{task}-{seed}"
        folder.mkdir()
        graft = Graft.take(torch.tensor(regions[task]), before, {"layer.0.weight": torch.ones(10)})
        graft.save(folder / "graft.safetensors")
    shared = {("a", "b"): 2 / 4, ("a", "c"): 1 / 6, ("b", "c"): 2 / 5}
    frame = rows(lambda seed: [compared(seed, task, "", tmp_path) for task in "bca"])
    pairs = overlaps.pairs_of(frame)
    assert len(pairs) == 3 * len(SEEDS)
    for pair in pairs.itertuples():
        assert pair.iou == shared[pair.a, pair.b]
    assert pairs.chance.iloc[0] == (3 * 3 / 10) / (6 - 3 * 3 / 10)

    def make(seed: int) -> list[dict[str, Any]]:
        again = "bc" if seed == 13 else ""
        order = (("a", again), ("b", "a"), ("c", "ab"))
        return [compared(seed, task, others, tmp_path / "none") for task, others in order]

    pairs = overlaps.pairs_of(rows(make))  # a record is enough, and one of two
    assert pairs.groupby("seed").size().tolist() == [3] * len(SEEDS)
    assert set(pairs[pairs.seed == 42].iou) == {0.08, 0.01}
    statements = overlap.judge(rows(make), ClaimConfig()).statements
    assert set(statements[0].values) == set(SEEDS)
    stage = frame.assign(folder=[str(tmp_path / "none")] * len(frame))
    assert overlaps.pairs_of(stage).empty


def test_settings_and_selectors_are_not_paired(tmp_path: Path) -> None:
    def make(seed: int) -> list[dict[str, Any]]:
        found = []
        for shots in (16, 64):
            more = {"config/shots": shots, "same_but_task": f"{seed}-{shots}"}
            runs = [compared(seed, *of, tmp_path, **more) for of in (("a", ""), ("b", "a"))]
            found += [{**run, "region": f"{run['region']}-{shots}"} for run in runs]
        return found

    assert len(overlaps.pairs_of(rows(make))) == 2 * len(SEEDS)
    with pytest.raises(InputError, match="differ in shots: "):
        overlap.judge(rows(make), ClaimConfig())


def test_empty_regions_are_left_off_a_curve() -> None:
    frame = pd.DataFrame(
        {"task": "a", "x": [0.0, 1e-3, 0.1], "y": [0.5, 0.6, 0.7], "by": "learned"}
    )
    (axis, *_) = plots.curves(frame, "y", "by", "accuracy").axes
    assert axis.get_xscale() == "log"
    assert axis.get_xlim() == pytest.approx((1e-3 / 1.3, 0.13))
    assert axis.get_xlabel() == "fraction of parameters kept (empty regions not shown)"
    assert axis.lines[0].get_xdata().tolist() == [1e-3, 0.1]
    (axis, *_) = plots.curves(frame[:1], "y", "by", "accuracy").axes  # nothing but an empty one
    assert (axis.get_xscale(), axis.get_xlabel()) == ("linear", "fraction of parameters kept")


def test_composition(tmp_path: Path) -> None:
    def run(seed: int, region: list[str], gains: dict[str, float], after: float) -> dict[str, Any]:
        names = {t: "test" if t == "a" else f"tasks/{t}" for t in "abc"}
        values = {f"graft/{names[t]}/score": 0.5 + 0.2 * g + WIGGLE[seed] for t, g in gains.items()}
        for t in "abc":
            values |= {f"inside_10/{names[t]}/score": 0.5 + 0.2 * after + WIGGLE[seed]}
            values |= {f"pretrained/{names[t]}/score": 0.5, f"finetuned/{names[t]}/score": 0.7}
        values["graft/test/score"] -= WIGGLE[seed]  # `row` adds it
        return row(seed, selector="file", regions=region, **values)

    def make(seed: int) -> list[dict[str, Any]]:
        alone = [
            run(seed, ["a"], {"a": 0.9, "b": 0.5, "c": 0.0}, 0.9),
            run(seed, ["b"], {"a": 0.5, "b": 0.9, "c": 0.1}, 0.9),
            run(seed, ["c"], {"a": 0.0, "b": 0.0, "c": 0.9}, 0.9),
        ]
        pair = run(seed, ["a", "b"], {"a": 0.8, "b": 0.8, "c": 0.1}, 0.9)
        return [*alone, pair, run(seed, ["a", "b", "c"], dict.fromkeys("abc", 0.75), 0.7)]

    found = judged("composition", rows(make), tmp_path, similar=[["a", "b"]])
    assert found["share of the gains of all tasks under the union of all regions"] == "holds"
    assert found["the same after 10 steps inside the union"] == "does not hold"
    assert found["share of the gains: a region on similar − on other tasks"] == "holds"
    outcome = composition.judge(rows(make), ClaimConfig(similar=[["a", "b"]]))
    unmoved = rows(make).assign(**{"finetuned/tasks/b/score": 0.505})  # by less than 0.01
    little = composition.judge(unmoved, ClaimConfig(similar=[["a", "b"]]))
    assert set(little.table[little.table.task == "b"]["relative gain"]) == {"–"}
    assert "–" not in set(little.table[little.table.task != "b"]["relative gain"])
    axis = little.draw().axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "b", "c"]
    assert len(axis.texts) == 2 * 5  # a cell without a gain has no number
    measured = {s.text: s.measured.mean for s in outcome.statements if s.measured}
    assert measured["share of the gain: a region on its own task"] == pytest.approx(0.9)
    assert measured["share of the gains: a union of two on either task"] == pytest.approx(0.8)
    assert measured["share of the gains: a region on similar − on other tasks"] == pytest.approx(
        0.475
    )


def test_continual(tmp_path: Path) -> None:
    def make(seed: int) -> list[dict[str, Any]]:
        found = [row(seed, "a", stage="x:a")]  # the first stage is the same run for both
        for take, who, later in (("graft", "graft", 0.87), ("finetuned", "finetuned", 0.6)):
            mode = {"config/continual.carry": take if take == "finetuned" else math.nan}
            last = {f"{who}/tasks/a/score": later + WIGGLE[seed], "stage": "x:a>b"}
            found.append(row(seed, "b", **mode, **last))
        return found

    frame = rows(make)
    found = judged("continual", frame, tmp_path)
    assert found["forgotten by the end, grafting in sequence"] == "holds"
    assert found["plain − grafting"] == "holds"
    measured = {s.text: s.measured.mean for s in continual.judge(frame, ClaimConfig()).statements}
    assert measured["forgotten by the end, grafting in sequence"] == pytest.approx(0.01)
    assert measured["forgotten by the end, plain sequential"] == pytest.approx(0.3)
    assert measured["parameters stored in all, grafting"] == 200


def test_what_is_missing_is_named() -> None:
    frame = rows(lambda seed: [row(seed)]).drop(columns="finetuned_temperature_scaled/test/ece")
    with pytest.raises(InputError, match="finetuned_temperature_scaled/test/ece"):
        calibration.judge(frame, ClaimConfig())
    with pytest.raises(InputError, match="lottery_0"):
        lottery.judge(frame, ClaimConfig())
    with pytest.raises(InputError, match="OOD"):
        ood.judge(frame, ClaimConfig())


def test_similar_is_symmetric() -> None:
    options = ClaimConfig(similar=[["a", "b", "c"], ["d", "e"]])
    for a, b in itertools.product("abcde", repeat=2):
        assert selection.are_similar(options, a, b) == selection.are_similar(options, b, a)
    assert selection.are_similar(options, "a", "c")
    assert not selection.are_similar(options, "a", "d")


def test_a_name_that_no_claim_has_is_one_line_with_the_nearest(tmp_path: Path) -> None:
    """Modules of the package that are no claims are not found either."""
    for name, hint in (("calibraton", " Did you mean 'calibration'?"), ("statements", "")):
        with pytest.raises(InputError) as caught:
            judging.judge_sweep(tmp_path, {"claim": {"name": name}}, rows(lambda s: [row(s)]))
        known = "adamw, bias_only, calibration, composition, continual, lottery, main_table"
        known += ", movement, ood, overlap, sparsity_curve"
        assert str(caught.value) == f"claim.name={name}: expected one of {known}.{hint}"


def test_a_file_has_one_public_function_of_one_name() -> None:
    folder = Path(finding.__file__).parent
    for name in finding.names():
        tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
        made = [
            node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        ]
        assert [one for one in made if not one.startswith("_")] == [finding.JUDGE], name


THEIRS = """
from skillgraft.analysis import plots
from skillgraft.analysis.claims.statements import ClaimResult, ClaimStatement, by_seed, table


def agree(rows, options):
    high = ClaimStatement("agreement", "> 0.9", by_seed(rows, "graft/test/agreement"), low=0.9)
    shown = {"graft/test/agreement": "agreement"}
    return ClaimResult([high], table(rows, ["task"], shown), lambda: plots.bars(rows, shown, "share"))
"""


def test_a_claim_of_somebody_elses_comes_by_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, sweep = tmp_path / "site", tmp_path / "sweep"
    info = site / "their_claims-1.0.dist-info"
    for folder in (info, sweep):
        folder.mkdir(parents=True)
    (site / "their_claims.py").write_text(THEIRS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-claims\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[skillgraft.claims]\nagreement = their_claims:agree\nbroken = their_claims:nothing\n"
        "calibration = their_claims:agree\n"
    )
    monkeypatch.syspath_prepend(site)
    frame = rows(lambda seed: [row(seed, **{"graft/test/agreement": 0.95 + WIGGLE[seed]})])
    judging.conclude(sweep, {"claim": {"name": "agreement"}}, frame)
    verdict = read_json(sweep / "verdict.json")
    assert verdict["claim"] == "agreement"
    assert [one["verdict"] for one in verdict["statements"]] == ["holds"]
    assert {"table.csv", "figure.png", "figure.svg"} < {file.name for file in sweep.iterdir()}
    assert "agreement" in finding.names()
    # ours come first, so that no package changes what a claim of the paper means
    assert finding.find_claim("calibration") is calibration.judge
    with pytest.raises(InputError, match=r"^claim\.name=broken: their_claims:nothing fails: "):
        finding.find_claim("broken")
