"""`skillgraft`: a plain Hydra application around `run`. Nothing heavy is imported before a job starts."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from skillgraft.cli import job_context
from skillgraft.config import compose, messages, packages, schema
from skillgraft.runtime import signals
from skillgraft.runtime.errors import InputError

log = logging.getLogger(__name__)
compose.register()
# Whether a job has started: only then an error may be ours. Global, since Hydra calls `app`.
composed = False


@hydra.main(version_base="1.3", config_path=str(packages.CONF), config_name="run")
def app(cfg: DictConfig) -> None:
    """Do one job: one run of the sweep, or the only one.

    A job of a sweep that fails says so in its log and its record, and leaves the others running.
    """
    global composed
    composed = True
    from skillgraft.experiments.run import run

    OmegaConf.set_readonly(cfg, True)  # what the user wrote stays what the user wrote
    context = job_context.of_hydra_job()
    try:
        run(cast(schema.RunConfig, cfg), context)
    except Exception as error:
        ours = isinstance(error, InputError)
        quiet = ours and not HydraConfig.get().verbose
        if context.multirun or not quiet:
            log.error("%s", error if ours else "failed", exc_info=not quiet)
        if not context.multirun:
            sys.exit(f"skillgraft: {error}" if ours else 1)
    finally:
        if context.multirun and context.folder is not None:
            from skillgraft.experiments import sweep

            sweep.progress(context.folder)


def main() -> None:
    """Run the application; an error of the user's is one line and exit code 1."""
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1" or any(
        arg.startswith("hydra.verbose=") and not arg.endswith("=false") for arg in sys.argv[1:]
    )
    # Makes Hydra hand its errors over instead of printing them, so that they can be put in one line.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        from skillgraft.experiments import sweep

        try:
            # between its jobs, and where others make them, a sweep that is asked to end still has its end
            signal.signal(signal.SIGTERM, signals.handle)
            app()
        except Exception:
            sweep.wait_for_running_jobs()
            raise
        finally:
            whole = sweep.finish()
        if not whole:
            sys.exit(1)
    except KeyboardInterrupt:  # before a run has begun
        print("skillgraft: interrupted (Ctrl-C); run the same command to resume", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # as in `skillgraft --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        ours = composed and not isinstance(error, (InputError, *messages.COMPOSITION_ERRORS))
        if wants_traceback or ours:
            raise
        line = str(error) if isinstance(error, InputError) else messages.explain(error)
        sys.exit(f"skillgraft: {line}")


if __name__ == "__main__":
    main()
