"""Launchers that want more than a package: SLURM's daemons on this machine, and a cluster of ray."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm

from skillgraft.runtime import files

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from runs import FEW, TINY, command, results

SWEEP = ("-m", "seed=13,21", *TINY, *FEW, "graft.steps=4", "graft.score_every=2")
LASTING = [o for o in SWEEP if not o.startswith("finetune.")]
LASTING += ["finetune.steps=400", "finetune.evaluate_every=5"]
has_ray = importlib.util.find_spec("hydra_plugins.hydra_ray_launcher") is not None

needs_slurm = pytest.mark.skipif(slurm.absent() is not None, reason=str(slurm.absent()))
needs_ray = pytest.mark.skipif(not has_ray, reason='pip install "skillgraft[ray]"')
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


def whole(root: Path) -> dict[str, dict[str, bytes]]:
    """Return the bytes of every whole run of a store."""
    return {folder.name: results(folder) for folder in root.glob("toy_film-*")}


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The sweep's two runs as the basic launcher makes them."""
    folder = tmp_path_factory.mktemp("basic")
    done = command(*SWEEP, "hydra/launcher=basic", cwd=folder)
    assert done.returncode == 0, done.stderr
    return whole(folder / "runs")


def under(environment: dict[str, str], folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the installed command in an environment."""
    return subprocess.Popen(
        [str(Path(sys.executable).parent / "skillgraft"), *arguments],
        cwd=folder,
        env={**environment, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@needs_slurm
def test_the_same_bits_under_slurm(
    tmp_path: Path, cluster: dict[str, str], basic: dict[str, dict[str, bytes]]
) -> None:
    sweep = under(cluster, tmp_path, *SWEEP, "hydra/launcher=slurm")
    printed, _ = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, printed
    assert len(basic) == 2
    assert whole(tmp_path / "runs") == basic


@needs_slurm
def test_a_job_that_is_cancelled_is_made_by_the_same_command(
    tmp_path: Path, cluster: dict[str, str]
) -> None:
    """The other job ends whole, the command fails, and its second call goes on from the checkpoint."""
    arguments, root = (*LASTING, "hydra/launcher=slurm"), tmp_path / "runs"
    sweep = under(cluster, tmp_path, *arguments)
    slurm.wait_for(lambda: len(list(root.rglob("resume.safetensors"))) == 2, 200)
    array = slurm.ask(cluster, "squeue", "--noheader", "--format=%F").split()[0]
    slurm.ask(cluster, "scancel", f"{array}_0")
    printed, _ = sweep.communicate(timeout=300)
    assert sweep.returncode == 1, printed
    slurm.wait_for(lambda: not slurm.ask(cluster, "squeue", "--noheader"), 200)
    records = root.glob(".jobs/*/*/run.json")
    states = {file.parent.name: files.read_json(file)["state"] for file in records}
    assert states == {"0": "interrupted", "1": "complete"}
    assert len(list(root.rglob("resume.safetensors"))) == 1
    again = under(cluster, tmp_path, *arguments)
    printed, _ = again.communicate(timeout=300)
    assert again.returncode == 0, printed
    assert len(whole(root)) == 2


@needs_ray
def test_the_same_bits_under_ray(tmp_path: Path, basic: dict[str, dict[str, bytes]]) -> None:
    sweep = under(dict(os.environ), tmp_path, *SWEEP, "hydra/launcher=ray_cluster")
    printed, _ = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, printed
    assert whole(tmp_path / "runs") == basic


@needs_ray
def test_a_job_under_ray_leaves_its_cores_to_the_one_that_it_waits_for(tmp_path: Path) -> None:
    """ray starts jobs in no fixed order: those that want a learned region's size may come first."""
    selectors = (
        "-m",
        "seed=13,21",
        "graft=learned,movement",
        "graft.size_from=learned",
        *TINY,
        *FEW,
    )
    sweep = under(
        dict(os.environ), tmp_path, *selectors, "graft.steps=20", "hydra/launcher=ray_cluster"
    )
    printed, _ = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, printed
    assert len(whole(tmp_path / "runs")) == 4
