"""Hydra's callback around a sweep."""

from __future__ import annotations

import sys
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from skillgraft.experiments import sweep
from skillgraft.runtime.errors import InputError


class SweepRecorder(Callback):
    """Writes the record of a sweep when it starts; conf/run.yaml names this class."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Begin the sweep's record; where that fails no job is started."""
        try:
            sweep.begun.append(sweep.begin(config, sys.argv[1:]))
        except (InputError, OSError) as error:
            sys.exit(f"skillgraft: the sweep's record: {error}")  # Hydra only warns of an exception
