"""`grafts`: look at what `skillgraft` left behind. Nothing heavy is imported before it is needed."""

from __future__ import annotations

from skillgraft.cli import (
    export_commands,
    graft_commands,
    rerun_command,
    store_commands,
    wandb_commands,
)
from skillgraft.cli.program import app

__all__ = [
    "app",
    "export_commands",
    "graft_commands",
    "rerun_command",
    "store_commands",
    "wandb_commands",
]


if __name__ == "__main__":
    app()
