"""Names of files in a store, each in one place, and of values in them.

No other module of the package spells these names out: a test looks for them.
"""

from __future__ import annotations

# A run: STORE/<id>/
CONFIG = "config.yaml"  # the resolved configuration
STATUS = "status.json"  # what the run is; written last: a folder that has it is complete
METRICS = "metrics.json"  # what was measured: model → split → metric
PREDICTIONS = "predictions.parquet"  # class probabilities on the run's own task
TASK_PREDICTIONS = "predictions-{task}.parquet"  # the same on another task of a mixture
GRAFT = "graft.safetensors"
OVERLAP = "overlap.json"  # with the regions of runs on other tasks
OVERLAP_MAP = "overlap.png"  # the same as a picture; a sweep's folder has the mean of its runs
RELIABILITY = "reliability.png"
PROVENANCE = "provenance.json"  # versions, machine, times, memory
CHECKSUMS = "checksums.txt"  # of all other files but the status, as `sha256sum -c` reads it

# A fine-tuning, STORE/.finetuned/<digest>/; a run has the history of its mask training too.
WEIGHTS = "weights.safetensors"
HISTORY = "history.json"  # the curves of training

# A run or a fine-tuning that is being made: STORE/.partial/<id>/
SECONDS = "seconds.json"  # the time that each stage has taken so far

# A sweep: STORE/sweeps/<name>-<hash>/
RECORD = "record.json"  # overrides, sweep file, claim, jobs and runs
VERDICT = "verdict.json"  # the statements of its claim, as measured
TABLE = "table.csv"  # the claim's table
FIGURE = "figure.png"  # the claim's figure; as SVG beside it

# A job: STORE/.jobs/<time>/, of a sweep with its number
RUN_FILE = "run.json"  # in a job's folder: which run it made or found, and what became of it
MADE, SHARED = "made", "shared"  # in it: what the job did for the fine-tuned weights
PLAN, ENDED = "plan.json", "ended.txt"  # in the folder of a sweep's jobs
