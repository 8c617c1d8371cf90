"""What a job costs beside its training: a sweep of three jobs in one process, one JSON line each.

    python tests/bench/bench_overhead.py [OVERRIDE...]

`wall` and `cpu` are seconds; on a busy machine the second is the steadier. What is not fine-tuning,
the choice of the region and evaluation is overhead: naming the run, loading, figures, writing. The
first job stands for a single one: it imports what the others find.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import psutil

from skillgraft.cli import skillgraft
from skillgraft.experiments import run
from skillgraft.experiments.stage_timer import StageTimer

WORK = ("finetune", "graft", "evaluate")
FEW = (
    "finetune.steps=20",
    "graft.steps=2",
    "task.max_test_examples=50",
    "threads=1",
    "logger=none",
)
Time = tuple[float, float]


def now() -> Time:
    return time.time(), time.process_time()


def since(start: Time) -> Time:
    wall, cpu = now()
    return wall - start[0], cpu - start[1]


def say(what: str, *parts: Time, less: Time = (0.0, 0.0)) -> None:
    wall, cpu = (sum(column) for column in zip(*parts, strict=True))
    found = {"what": what, "wall": round(wall - less[0], 3), "cpu": round(cpu - less[1], 3)}
    print(json.dumps(found), file=sys.stderr)


def main() -> None:
    command = [sys.executable, "-m", "skillgraft.cli.skillgraft", "--help"]
    start = time.time()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    say("skillgraft --help", (time.time() - start, usage.ru_utime + usage.ru_stime))

    jobs: list[dict[str, Time]] = []
    kept = run.find_or_make

    def job(*arguments: Any) -> Any:
        start = now()
        jobs.append({"begun": start})
        found = kept(*arguments)
        jobs[-1]["whole"] = since(start)
        return found

    @contextlib.contextmanager
    def timed(self: StageTimer, stage: str) -> Iterator[None]:
        start = now()
        yield
        jobs[-1][stage] = since(start)
        self.seconds[stage] = jobs[-1][stage][0]

    run.find_or_make, StageTimer.timed = job, timed  # type: ignore[assignment, method-assign]
    with tempfile.TemporaryDirectory() as place:
        given = (f"store={place}", "seed=1,2,3", *FEW, *sys.argv[1:])
        sys.argv = ["skillgraft", "-m", *given]
        skillgraft.main()
        ended = now()
    born = psutil.Process().create_time()
    wall, cpu = jobs[0]["begun"]
    say("start-up, up to the first job", (wall - born, cpu))
    for number, stages in enumerate(jobs):
        kind = "the first job" if number == 0 else f"job {number + 1}"
        for stage, taken in stages.items():
            if stage not in ("begun", "whole"):
                say(f"{kind}: {stage}", taken)
        work = [stages[stage] for stage in WORK]
        less = (sum(w for w, _ in work), sum(c for _, c in work))
        say(f"{kind}: overhead", stages["whole"], less=less)
    say("a sweep's end", (ended[0] - sum(jobs[-1][n][0] for n in ("begun", "whole")),
                          ended[1] - sum(jobs[-1][n][1] for n in ("begun", "whole"))))  # fmt: skip


if __name__ == "__main__":
    main()
