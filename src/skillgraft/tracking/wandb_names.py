"""Names of W&B that its documentation does not promise: all that we use stand in this file.

Everything else that we use of W&B is documented. `tests/test_wandb.py` checks that the names exist.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import wandb
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

# A resumed run writes its own copies of these files, and they would replace those of the run:
# config.yaml, wandb-summary.json, requirements.txt, the machine's metadata and its use.
ONLY_ARTIFACTS: dict[str, Any] = {
    "x_primary": False,
    "x_disable_meta": True,
    "x_disable_stats": True,
}
# Records of an offline run that name no file, as `wandb leet inspect --json` calls them. The other
# kinds (artifact, tbrecord, use_artifact …) can make `wandb sync` read any file of this machine.
HARMLESS = (
    "header", "run", "config", "environment", "stats", "telemetry", "metric", "history", "summary",
    "output", "output_raw", "exit",
)  # fmt: skip


def sent_mark(record: Path) -> Path:
    """Return the file that `wandb sync` puts beside the record of a run that it has sent."""
    return record.with_name(f"{record.name}.synced")


def keep_as_file(table: wandb.Table, run: wandb.Run, name: str) -> None:
    """Make a table a file of its run before the table is logged.

    W&B else logs the table as an artifact too. An offline record names the files of an artifact by
    absolute path, and the path is wrong as soon as the store is moved.
    """
    table.bind_to_run(run, name, run.step)


def model(view: Workspace | Report) -> Any:
    """Return a workspace or report as the pydantic model that is sent to W&B."""
    return view._to_model()
