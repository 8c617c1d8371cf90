"""Every claim on rows whose verdict is known by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from skillgraft import claims, figure, verdict
from skillgraft.config import ClaimConfig
from skillgraft.errors import InputError

SEEDS = (13, 21, 42, 87, 100)
WIGGLE = dict(zip(SEEDS, (-0.002, -0.001, 0.0, 0.001, 0.002), strict=True))  # between seeds


def row(seed: int, task: str = "a", **values: Any) -> dict[str, Any]:
    """Return one run as `compare.collect` gives it, its graft's score moved a little by the seed."""
    base: dict[str, Any] = {
        "seed": seed, "task": task, "selector": "learned", "sparsity": 1e-4,
        "region/size": 100, "region/sparsity": 1e-4, "stage": "x:a",
        "config/task.template": "*text* It was *mask*.", "config/finetune.train": "full",
        "pretrained/test/score": 0.5, "finetuned/test/score": 0.9, "graft/test/score": 0.88,
        "finetuned/test/ece": 0.10, "graft/test/ece": 0.04, "finetuned_scaled/test/ece": 0.03,
        "graft_scaled/test/ece": 0.03, "graft/test/agreement": 0.95, "graft/test/relative_gain": 0.9,
    }  # fmt: skip
    base |= values
    base["graft/test/score"] += WIGGLE[seed]
    base["graft/test/ece"] += WIGGLE[seed]
    return base


def rows(make: Callable[[int], list[dict[str, Any]]]) -> pd.DataFrame:
    return pd.DataFrame([run for seed in SEEDS for run in make(seed)])


def verdicts(outcome: verdict.Outcome) -> dict[str, str]:
    return {statement.text: statement.verdict for statement in outcome.statements}


def judged(name: str, frame: pd.DataFrame, tmp_path: Path, **options: Any) -> dict[str, str]:
    """Judge a claim, draw its figure, and return the verdicts."""
    outcome = claims.CLAIMS[name](frame, ClaimConfig(name, **options))
    assert len(outcome.table)
    assert figure.save(outcome.draw(), tmp_path / "figure.svg").stat().st_size > 1000
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

    found = judged("sparsity_curve", rows(make), tmp_path, at=1e-4)
    assert found == {
        "learned graft ÷ fine-tuned at sparsity 1e-06 (1 entries)": "does not hold",
        "learned graft ÷ fine-tuned at sparsity 0.0001 (100 entries)": "holds",
    }
    notes = claims.sparsity_curve(rows(make), ClaimConfig(at=1e-4)).notes
    assert notes[0].endswith("2 of 2 tasks (a, b)")


def test_three_seeds_decide_nothing(tmp_path: Path) -> None:
    frame = rows(lambda seed: [row(seed)])
    few = frame[frame.seed.isin(SEEDS[:3])]
    assert set(judged("sparsity_curve", few, tmp_path).values()) == {"not decided"}


def test_a_seed_that_lacks_a_task_is_left_out() -> None:
    frame = rows(lambda seed: [row(seed, "a"), row(seed, "b", **{"graft/test/score": 0.5})])
    frame = frame[~((frame.seed == 100) & (frame.task == "b"))]
    found = verdict.by_seed(frame, "graft/test/score")
    assert set(found) == set(SEEDS) - {100}
    assert found[13] == pytest.approx(0.69 - 0.002)


def test_calibration(tmp_path: Path) -> None:
    found = list(judged("calibration", rows(lambda seed: [row(seed)]), tmp_path).values())
    assert found == ["holds", "holds", "does not hold", "does not hold"]


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
            "config/finetune.train": "bias",
            "finetuned/ood/far/score": 0.5 + WIGGLE[seed],
        }
        return [row(seed, **far, **near), row(seed, **bias)]

    found = judged("ood", rows(make), tmp_path, large=["far"], small=["a/near"])
    assert list(found.values()) == ["holds", "holds", "holds"]


def test_movement(tmp_path: Path) -> None:
    def make(seed: int) -> list[dict[str, Any]]:
        return [
            row(seed, selector=selector, sparsity=s, **{"graft/test/score": score, "region/sparsity": s})
            for s, selector, score in (
                (1e-5, "learned", 0.8), (1e-5, "movement", 0.6 - 2 * WIGGLE[seed]),
                (1e-2, "learned", 0.9), (1e-2, "movement", 0.9 - 2 * WIGGLE[seed]),
            )
        ]  # fmt: skip

    found = judged("movement", rows(make), tmp_path)
    assert list(found.values()) == ["holds", "holds"]


def test_lottery(tmp_path: Path) -> None:
    tickets = {"lottery_0/test/score": 0.5, "lottery_100/test/score": 0.85}
    frame = rows(lambda seed: [row(seed, **tickets)])
    found = judged("lottery", frame, tmp_path)
    assert found["ticket trained 0 steps ÷ fine-tuned, best sparsity"] == "holds"
    assert found["graft − untrained ticket"] == "holds"


def test_bias_only(tmp_path: Path) -> None:
    def make(seed: int) -> list[dict[str, Any]]:
        bias = {"config/finetune.train": "bias", "finetuned/test/score": 0.89 + WIGGLE[seed]}
        return [row(seed, selector="bias", **{"graft/test/score": 0.55}), row(seed, **bias)]

    found = judged("bias_only", rows(make), tmp_path)
    assert list(found.values())[1:] == ["holds", "holds"]


def test_adamw(tmp_path: Path) -> None:
    def make(seed: int) -> list[dict[str, Any]]:
        return [row(seed, **{"graft/test/score": 0.5}), row(seed, **{"config/finetune.l1": 0.2})]

    found = judged("adamw", rows(make), tmp_path)
    assert list(found.values()) == ["holds", "holds"]


def test_overlap(tmp_path: Path) -> None:
    iou = {frozenset("ab"): 0.08, frozenset("ac"): 0.01, frozenset("bc"): 0.01}

    def make(seed: int) -> list[dict[str, Any]]:
        found = []
        for task, before in (("a", ""), ("b", "a"), ("c", "ab")):
            values = {f"overlap/{o}/iou": iou[frozenset((task, o))] + WIGGLE[seed] for o in before}
            found.append(
                row(seed, task, **values, **{f"overlap/{o}/chance": 0.001 for o in before})
            )
        return found

    found = judged("overlap", rows(make), tmp_path, similar=[["a", "b"]])
    assert found["learned: IoU of two tasks, mean of pairs"] == "holds"
    assert found["learned: IoU of similar − of other pairs"] == "holds"


def test_empty_regions_are_left_off_a_curve() -> None:
    frame = pd.DataFrame(
        {"task": "a", "x": [0.0, 1e-3, 0.1], "y": [0.5, 0.6, 0.7], "by": "learned"}
    )
    (axis, *_) = figure.curves(frame, "y", "by").axes
    assert axis.get_xscale() == "log"
    assert axis.get_xlim() == pytest.approx((1e-3 / 1.3, 0.13))
    assert axis.get_xlabel() == "sparsity (0 is left off)"
    assert axis.lines[0].get_xdata().tolist() == [1e-3, 0.1]
    (axis, *_) = figure.curves(frame[:1], "y", "by").axes  # nothing but an empty one
    assert (axis.get_xscale(), axis.get_xlabel()) == ("linear", "sparsity")


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
    outcome = claims.composition(rows(make), ClaimConfig(similar=[["a", "b"]]))
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
            mode = {"config/model.take": take if take == "finetuned" else math.nan}
            last = {f"{who}/tasks/a/score": later + WIGGLE[seed], "stage": "x:a>b"}
            found.append(row(seed, "b", **mode, **last))
        return found

    frame = rows(make)
    found = judged("continual", frame, tmp_path)
    assert found["forgotten by the end, grafting in sequence"] == "holds"
    assert found["plain − grafting"] == "holds"
    measured = {s.text: s.measured.mean for s in claims.continual(frame, ClaimConfig()).statements}
    assert measured["forgotten by the end, grafting in sequence"] == pytest.approx(0.01)
    assert measured["forgotten by the end, plain sequential"] == pytest.approx(0.3)
    assert measured["entries stored in all, grafting"] == 200


def test_what_is_missing_is_named() -> None:
    frame = rows(lambda seed: [row(seed)]).drop(columns="finetuned_scaled/test/ece")
    with pytest.raises(InputError, match="finetuned_scaled/test/ece"):
        claims.calibration(frame, ClaimConfig())
    with pytest.raises(InputError, match="lottery_0"):
        claims.lottery(frame, ClaimConfig())
    with pytest.raises(InputError, match="OOD"):
        claims.ood(frame, ClaimConfig())


def test_similar_is_symmetric() -> None:
    options = ClaimConfig(similar=[["a", "b", "c"], ["d", "e"]])
    for a, b in itertools.product("abcde", repeat=2):
        assert claims.similar(options, a, b) == claims.similar(options, b, a)
    assert claims.similar(options, "a", "c")
    assert not claims.similar(options, "a", "d")
