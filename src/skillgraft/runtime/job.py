"""The job in which a run is made: what Hydra, the command line and the terminal say of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class JobContext:
    """What a run is told of the job in which it is made; `cli` makes it and hands it down.

    The default is that of a run which Python code asks for: no job folder, no sweep, no bars.

    - `config_folders`: the configuration folders, in which the files of tasks are looked up;
    - `folder`: Hydra's folder of the job, where its log and its record are;
    - `number`: the job's number in its sweep;
    - `multirun`: whether the job is one of a sweep;
    - `launcher`: the class of Hydra's launcher, by its full name;
    - `command`: the command that makes this job alone;
    - `progress`: whether progress bars are shown where `trainer.progress` does not say.
    """

    config_folders: tuple[Path, ...] = ()
    folder: Path | None = None
    number: int | None = None
    multirun: bool = False
    launcher: str | None = None
    command: tuple[str, ...] = ()
    progress: bool = False

    def shows_progress(self, requested: bool | None) -> bool:
        """Return whether progress bars are shown: as requested, else as the context says."""
        return self.progress if requested is None else requested
