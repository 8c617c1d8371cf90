"""The wall time of a run's stages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from skillgraft.runtime.files import read_json, write_json
from skillgraft.store.names import SECONDS


class StageTimer:
    """The seconds that each stage took, summed over the attempts of a run that was stopped.

    `seconds.json` in the run's partial folder, beside the stages' checkpoints, keeps them.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / SECONDS
        earlier = read_json(self.file) if self.file.is_file() else {}
        self.seconds: dict[str, float] = earlier.get("seconds", {})
        self.attempts: int = earlier.get("attempts", 0) + 1

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall time of a stage, also of one that a signal ends, to that of earlier attempts."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = self.seconds.get(stage, 0.0) + time.perf_counter() - start
            self.seconds[stage] = round(spent, 3)
            with suppress(FileNotFoundError):  # another process has taken over, and has published
                write_json(self.file, {"attempts": self.attempts, "seconds": self.seconds})
