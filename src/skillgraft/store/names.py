"""Names of files and of values in a store."""

from __future__ import annotations

RUN_FILE = "run.json"  # in a job's folder: which run it made or found, and what became of it
MADE, SHARED = "made", "shared"  # in it: what the job did for the fine-tuned weights
