"""Sweeps: their files, their record, and what they show at the end, through the installed command."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict

from runs import TINY, command, composed
from skillgraft.analysis.claims import finding
from skillgraft.cli import skillgraft
from skillgraft.cli.sweep_recorder import SweepRecorder
from skillgraft.config import packages, validation
from skillgraft.config.compose import expand, register
from skillgraft.experiments import sweep
from skillgraft.runtime import leases
from skillgraft.runtime.files import read_json, write_json
from skillgraft.store import names, sweep_records

FILES = sorted(
    f"{file.parent.name}={file.stem}"
    for file in packages.SWEEPS.glob("*/*.yaml")
    if not file.name.startswith("_")
)
PAPER = {
    "sparsity_curve", "calibration", "main_table", "ood", "movement", "lottery", "bias_only",
    "adamw", "overlap", "composition", "continual",
}  # fmt: skip
QUICK = (
    "shots=8", "finetune.steps=20", "finetune.evaluate_every=20", "graft.steps=2",
    "graft.examples_per_step=16", "task.max_test_examples=50", "logger=none",
)  # fmt: skip


@pytest.mark.parametrize("group", ["paper", "embedded"])
def test_every_claim_of_the_paper_has_its_file(group: str) -> None:
    assert {name.partition("=")[2] for name in FILES if name.startswith(group)} == PAPER
    assert set(finding.names()) == PAPER


def values(axis: str) -> list[str]:
    """Return the values of one axis, lists in brackets being one value each."""
    (override,) = OverridesParser.create().parse_overrides([axis])
    sweeps = override.is_sweep_override()
    return list(override.sweep_string_iterator()) if sweeps else [axis.partition("=")[2]]


@pytest.mark.parametrize("file", FILES)
def test_sweep_file(file: str) -> None:
    """Its first and last job compose and pass, and every option of its groups is there."""
    register()
    given = ["model.name=x", "model.path=x"] if "mlm" in file else []
    with initialize_config_dir(str(packages.CONF), version_base="1.3"):
        whole = compose("run", [file, *given], return_hydra_config=True)
        params = OmegaConf.to_container(whole.hydra.sweeper.params, resolve=True)
        axes = {name: values(f"{name}={axis}") for name, axis in params.items()}
        for place in (0, -1):
            job = [f"{name}={options[place]}" for name, options in axes.items()]
            cfg = compose("run", [file, *given, *job])
            validation.check(cfg)
            expand(cfg, [packages.CONF])
    for name, options in axes.items():
        if "." not in name and (packages.CONF / name).is_dir():
            assert {f"{option}.yaml" for option in options} <= {
                path.name for path in (packages.CONF / name).iterdir()
            }
    if file.endswith("=ood"):  # a shift that no run measures would be left out of the verdict
        stated = {
            place for place in (*whole.claim.large_shift, *whole.claim.small_shift) if "/" in place
        }
        files = {
            task: OmegaConf.load(packages.CONF / "task" / f"{task}.yaml") for task in axes["task"]
        }
        assert stated <= {f"{task}/{ood}" for task, file in files.items() for ood in file.ood}
    group, _, name = file.partition("=")
    assert str(whole.hydra.mode) == "RunMode.MULTIRUN"
    if group in ("paper", "embedded"):
        assert whole.claim.name == name
        assert axes["seed"] == ["13", "21", "42", "87", "100"]
    first, second = (packages.SWEEPS / group / f"{name}.yaml").read_text().splitlines()[:2]
    assert first == "# @package _global_"
    assert second.startswith(f"# skillgraft {file}")


def test_gpt2_has_the_papers_constants() -> None:
    """The command in the sweep's file, composed: section 2 of the method at 64 shots, judged at 0.05 %."""
    text = (packages.SWEEPS / "paper" / "sparsity_curve.yaml").read_text()
    (line,) = (line for line in text.splitlines() if "model=gpt2" in line)
    cfg = composed(*line.removeprefix("# skillgraft ").partition("  ")[0].split())
    validation.check(cfg)
    assert (cfg.model.name, cfg.finetune.kind, cfg.claim.sparsity) == (
        "gpt2",
        "autoregressive",
        5e-4,
    )
    assert cfg.model.graftable == cfg.model.blocks["autoregressive"]
    one, roberta = cfg.finetune, composed("paper=sparsity_curve").finetune
    assert (one.optimizer, one.lr, one.batch_size, one.steps) == ("sgd", 5e-3, 4, 1000)
    assert {**one, "kind": None} == {**roberta, "kind": None}


MINE = """\
# @package _global_
# skillgraft --config-dir FOLDER {group}=mine
defaults: [{base}]
sparsity: 1e-2
hydra:
  sweeper:
    params:
      seed: 13,21
"""


def own_sweep(folder: Path, group: str, base: str) -> tuple[str, ...]:
    """Write a user's own sweep file, and return the arguments that start it."""
    (folder / group).mkdir(parents=True)
    (folder / group / "mine.yaml").write_text(MINE.format(group=group, base=base))
    return "--config-dir", str(folder), f"{group}=mine"


def test_a_sweep_file_of_the_users_own(tmp_path: Path) -> None:
    """It runs without -m, has its name in its record, and a value of the command line replaces an axis."""
    arguments = own_sweep(tmp_path / "own", "sweep", "/embedded/_base@_here_")
    done = command(*arguments, *TINY, "graft=random", "seed=13", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs" / "sweeps").iterdir()
    assert folder.name.startswith("sweep-mine-")
    record = read_json(folder / "record.json")
    assert record["axes"] == {"seed": "13,21"}
    assert ["seed13" in name for name in record["runs"]] == [True]


@pytest.mark.parametrize("group", ["paper", "embedded", "beyond"])
def test_a_sweep_file_of_the_users_own_in_a_group_of_ours(tmp_path: Path, group: str) -> None:
    """It stands beside ours, and may start from what these share."""
    base = "/embedded/_base@_here_" if group == "beyond" else "_base"
    arguments = own_sweep(tmp_path / "own", group, base)
    shown = command(*arguments, "--cfg", "hydra", "--package", "hydra.sweeper.params", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert OmegaConf.create(shown.stdout) == {"seed": "13,21"}
    ours = FILES[[name.startswith(group) for name in FILES].index(True)]
    shown = command(*arguments[:2], ours, "model.path=x", "--cfg", "job", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep of two seeds whose last job fails, and what it printed."""
    folder = tmp_path_factory.mktemp("sweep")
    done = command(
        "embedded=calibration", "seed=13,21", "task=toy_film", "sparsity=1e-2,2", *QUICK, cwd=folder
    )  # fmt: skip
    assert done.returncode == 1
    assert "sparsity=2.0: expected a value from 0 to 1" in done.stderr
    return folder / "runs", done.stdout


def test_the_end_comes_in_spite_of_a_failed_job(swept: tuple[Path, str]) -> None:
    root, printed = swept
    (folder,) = (root / "sweeps").iterdir()
    assert folder.name.startswith("embedded-calibration-")
    assert str(folder) in printed
    assert "relative reduction in ECE" in printed
    assert "not decided" in printed
    assert {path.name for path in folder.iterdir()} == {
        "record.json", "verdict.json", "table.csv", "figure.png", "figure.svg",
    }  # fmt: skip


def test_record_and_verdict(swept: tuple[Path, str]) -> None:
    root, _ = swept
    (folder,) = (root / "sweeps").iterdir()
    record = read_json(folder / "record.json")
    assert record["claim"]["name"] == "calibration"
    assert record["axes"]["seed"] == "13,21,42,87,100"
    assert "seed=13,21" in record["overrides"]
    assert [name.split("-")[4] for name in record["runs"]] == ["seed13", "seed21"]
    judged = read_json(folder / "verdict.json")
    assert judged["runs"] == 2
    for number, name in ((13, record["runs"][0]), (21, record["runs"][1])):
        metrics = read_json(root / name / "metrics.json")
        less = metrics["finetuned"]["test"]["ece"] - metrics["graft"]["test"]["ece"]
        assert judged["statements"][1]["seeds"][str(number)] == pytest.approx(less)
    table = pd.read_csv(folder / "table.csv")
    assert table["n"].tolist() == [2]


def test_claims_are_judged_again_from_the_store(swept: tuple[Path, str]) -> None:
    root, _ = swept
    done = command("claims", str(root), "--json", cwd=root, program="grafts")
    assert done.returncode == 0, done.stderr
    lines = json.loads(done.stdout)
    assert {line["sweep"] for line in lines} == {"embedded-calibration"}
    assert {line["verdict"] for line in lines} == {"not decided"}
    assert lines[0]["measured"]["n"] == 2
    moved = root.rename(root.with_name("moved"))
    try:
        again = command("claims", str(moved), "--json", cwd=moved, program="grafts")
        assert json.loads(again.stdout) == lines
    finally:
        moved.rename(root)


def test_results_are_published_with_how_they_were_made(
    swept: tuple[Path, str], tmp_path: Path
) -> None:
    """Whoever has the files sees the table that the store gives."""
    root, _ = swept
    out = tmp_path / "results"
    done = command("claims", str(root), "--out", str(out), cwd=root, program="grafts")
    assert done.returncode == 0, done.stderr
    assert [file.name for file in out.iterdir()] == ["embedded-calibration.json"]
    result = read_json(out / "embedded-calibration.json")
    verdict = read_json(next((root / "sweeps").iterdir()) / "verdict.json")
    assert {name: result[name] for name in verdict} == verdict
    assert result["made"]["seeds"] == [13, 21]
    assert result["made"]["seconds"] > 0
    assert "embedded=calibration" in result["command"]
    again = command("claims", str(out), cwd=tmp_path, program="grafts")
    assert again.stdout == done.stdout


def test_compare_gives_intervals_over_examples(swept: tuple[Path, str]) -> None:
    root, _ = swept
    name = read_json(next((root / "sweeps").iterdir()) / "record.json")["runs"][0]
    done = command("compare", str(root / name), "--json", cwd=root, program="grafts")
    assert done.returncode == 0, done.stderr
    lines = {line["model"]: line for line in json.loads(done.stdout)}
    assert {
        "pretrained",
        "finetuned",
        "graft",
        "finetuned_temperature_scaled",
        "graft_temperature_scaled",
    } == set(lines)
    metrics = read_json(root / name / "metrics.json")
    for model, line in lines.items():
        found = line["accuracy"]
        assert found["mean"] == pytest.approx(metrics[model]["test"]["accuracy"])
        assert found["low"] <= found["mean"] <= found["high"]
        assert found["n"] == 50
    assert (
        lines["finetuned_temperature_scaled"]["p, accuracy"] == 1
    )  # a temperature moves no prediction
    wrong = command("compare", str(root / name), "--split", "tset", cwd=root, program="grafts")
    assert wrong.returncode == 1
    assert "the run has validation, test" in wrong.stderr


def test_the_same_sweep_again_has_the_same_record(swept: tuple[Path, str]) -> None:
    root, _ = swept
    again = command(
        "embedded=calibration", "seed=13,21", "task=toy_film", "sparsity=1e-2,2", *QUICK,
        "force=false", cwd=root.parent,
    )  # fmt: skip
    assert len(list((root / "sweeps").iterdir())) == 1
    assert again.stdout.count("already complete") + again.stderr.count("already complete") == 2
    assert "fine-" not in again.stdout.split("already complete")[1]  # a line, no table


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Start a sweep of two seeds as Hydra would and return the folder of its jobs; none is run."""
    monkeypatch.setattr(sweep, "begun", [])
    monkeypatch.setattr("sys.argv", ["skillgraft", "-m", "seed=13,21", "force=true"])
    register()

    def start(name: str, *overrides: str) -> Path:
        jobs = tmp_path / name
        given = ["seed=13,21", "logger=none", f"store={tmp_path}/runs", *overrides]
        with initialize_config_dir(str(packages.CONF), version_base="1.3"):
            base = [override for override in given if "," not in override]
            cfg = compose("run", [*base, f"hydra.sweep.dir={jobs}"], return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.overrides.task = given
        SweepRecorder().on_multirun_start(cfg)
        return jobs

    return start


def end(jobs: Path, number: int, **values: object) -> None:
    """Write what has become of a job."""
    (jobs / str(number)).mkdir(exist_ok=True)
    write_json(jobs / str(number) / names.RUN_FILE, {"id": None, **values})


def test_two_starts_of_one_sweep_end_by_themselves(
    begin: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    first, second = begin("first"), begin("second")
    sweep.begun.reverse()
    for number, name in enumerate(("run-a", "run-b")):
        end(first, number, state="complete", id=name)
    assert sweep.finish()
    assert "2 of 2 jobs complete" in capsys.readouterr().out
    end(second, 0, state="failed", error="InputError", message="of a test")
    assert not sweep.finish()
    printed = capsys.readouterr()
    assert "failed: seed=13" in printed.err
    assert "not started: seed=21" in printed.err
    assert "complete only these jobs: skillgraft -m seed=13,21\n" in printed.err  # not by force


def test_what_an_earlier_start_has_made_stays_in_the_record(
    begin: Callable[..., Path], tmp_path: Path
) -> None:
    """Broken off before its first job, or in the middle, a sweep is still drawn from all its runs."""
    jobs = begin("first")
    for number, name in enumerate(("run-a", "run-b")):
        end(jobs, number, state="complete", id=name)
    sweep.finish()
    (file,) = (tmp_path / "runs" / "sweeps").glob("*/record.json")
    begin("killed", "force=true")
    sweep.begun.clear()
    record = read_json(file)
    assert sweep_records.run_ids(record, sweep_records.jobs_of(record)) == ["run-a", "run-b"]
    end(begin("broken"), 1, state="complete", id="run-c")
    sweep.finish()
    assert read_json(file)["runs"] == ["run-a", "run-c"]


def test_no_job_starts_without_the_record(begin: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(SystemExit) as caught:
        begin("first")
    assert str(caught.value.code).startswith("skillgraft: the sweep's record: ")


def test_what_failed_is_listed_though_the_claim_breaks(
    begin: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("of a test")

    monkeypatch.setattr(sweep, "report", broken)
    jobs = begin("first")
    end(jobs, 0, state="complete", id="run-a")
    assert not sweep.finish()
    assert "not started: seed=21" in capsys.readouterr().err
    assert "KeyError" in caplog.text


def test_the_end_waits_for_the_jobs_that_still_run(begin: Callable[..., Path]) -> None:
    """As after submitit has given up at the first that was killed."""
    sweep.wait_for_running_jobs()  # outside of a sweep
    jobs = begin("first")
    for number, others in enumerate(({"pid": 0, "started": 0}, {})):
        end(jobs, number, state="running", **(leases.record_of_this_process() | others))
    later = threading.Timer(1.0, end, (jobs, 1), {"state": "complete"})
    later.start()
    sweep.wait_for_running_jobs()
    later.join()
    assert read_json(jobs / "1" / names.RUN_FILE)["state"] == "complete"


def test_a_sweep_that_is_asked_to_end_between_jobs_has_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    came = []
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # which `main` sets: put back after the test
    monkeypatch.setattr(skillgraft, "app", lambda: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(sweep, "finish", lambda: came.append("end"))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as caught:
            skillgraft.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 128 + signal.SIGTERM
    assert came == ["end"]
