"""How the store scales: figures of a store of made-up runs, one JSON line each.

    python tests/bench/bench_store.py [--runs 10000]

`wall` and `cpu` are seconds; on a busy machine the second is the steadier. `peak_mib` is the largest
resident size of the process that was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from runs import CONTEXT, composed
from skillgraft.experiments import pipeline, run, summary
from skillgraft.store import index
from stores import add, pretend, status


def say(what: str, runs: int, **figures: float) -> None:
    print(json.dumps({"what": what, "runs": runs, **{k: round(v, 4) for k, v in figures.items()}}))


def measured(*command: str) -> dict[str, float]:
    """Return wall and CPU seconds and the peak memory of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, code, usage = os.wait4(process.pid, 0)
    process.returncode = code
    assert code == 0, command
    return {
        "wall": time.perf_counter() - start,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
    }


def jobs(root: Path, number: int, runs: int, *overrides: str) -> None:
    """Say what a job adds to Hydra's composing: one that is new, and one whose run is whole."""

    def take(n: int) -> tuple[float, float]:
        cfg = composed(f"store={root}", f"seed={n}", *overrides)
        start, busy = time.perf_counter(), time.process_time()
        run.run(cfg, CONTEXT)
        return time.perf_counter() - start, time.process_time() - busy

    kind = " ".join(o for o in overrides if not o.startswith(("logger", "threads")))
    for name in ("name a run", "skip a whole run"):
        taken = [take(n) for n in range(number)]
        wall, cpu = (statistics.median(column) for column in zip(*taken, strict=True))
        say(f"{name}, {kind}", runs, wall=wall, cpu=cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=50)
    arguments = parser.parse_args()
    runs = arguments.runs
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        start = time.perf_counter()
        for n in range(runs):
            add(root, n)
        say("make the folders", runs, wall=time.perf_counter() - start)
        grafts = [sys.executable, "-m", "skillgraft.cli.grafts"]
        say("grafts --help", runs, **measured(*grafts, "--help"))
        say("grafts list, without an index", runs, **measured(*grafts, "list", folder))
        say("grafts list", runs, **measured(*grafts, "list", folder))
        say("grafts table", runs, **measured(*grafts, "table", folder))
        start = time.perf_counter()
        for n in range(100):
            list(index.runs(root, "same_but_selector", status(n)["same_but_selector"]))
        say("look up runs by a key", runs, wall=(time.perf_counter() - start) / 100)
        pipeline.make_run = pretend
        summary.show = str  # type: ignore[assignment]  # nothing, as in a multirun
        common = ("logger=none", "threads=1")
        jobs(root, arguments.jobs, runs, *common, "graft=random")
        jobs(root, arguments.jobs, runs, *common, "graft=movement", "graft.size_from=random")


if __name__ == "__main__":
    main()
