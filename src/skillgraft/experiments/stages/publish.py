"""Publish: what the run was, and its folder in the store."""

from __future__ import annotations

import logging
import platform
import shutil
from typing import Any

from omegaconf import OmegaConf

from skillgraft.config import identity as config_identity
from skillgraft.experiments import provenance
from skillgraft.experiments.stage_timer import StageTimer
from skillgraft.experiments.stages.evaluate import EvaluatedRun
from skillgraft.experiments.stages.finetune import FineTunedRun
from skillgraft.runtime.files import write_json
from skillgraft.runtime.seeds import derive
from skillgraft.store import checksums
from skillgraft.store.names import CONFIG, PROVENANCE, WEIGHTS


def publish(evaluated: EvaluatedRun, timer: StageTimer) -> None:
    """Write what the run was, copy Hydra's files in from the job's folder, and publish the folder."""
    from skillgraft.core.graft_facts import tasks_of

    finetuned = evaluated.selected.finetuned
    inputs = finetuned.loaded.inputs
    job = inputs.context.folder
    cfg, folder, identity = inputs.cfg, inputs.folder, inputs.identity
    (folder / CONFIG).write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
    write_json(folder / PROVENANCE, provenance_of(finetuned, timer))
    timer.file.unlink()
    if job is not None and job.is_dir():
        for handler in logging.getLogger().handlers:
            handler.flush()
        shutil.copytree(job, folder / "hydra", dirs_exist_ok=True)
    status = {
        **inputs.facts(),
        "same_but_task": identity.same_but_task,
        "same_but_selector": identity.same_but_selector,
        "finetuned": identity.finetuned,
        "same_but_seed": identity.same_but_seed,
        "region": identity.region,
        "same_outcome": identity.same_outcome,
        "stage": identity.stage,
        "regions": tasks_of(evaluated.selected.graft),
        "config": config_identity.identity(cfg),
    }
    inputs.store.publish(folder, inputs.store.run(identity.id), status)


def provenance_of(finetuned: FineTunedRun, timer: StageTimer) -> dict[str, Any]:
    """Return versions, code, files, digests, seeds, device, flags, timings and memory."""
    inputs = finetuned.loaded.inputs
    cfg, accelerator = inputs.cfg, inputs.cfg.trainer.accelerator
    purposes = {"data": "train", "model": "head", "mask": "scores"}
    return {
        "versions": provenance.versions(),
        "code": provenance.code(),
        "platform": platform.platform(),
        "accelerator": accelerator,
        "device": provenance.device(accelerator),
        "flags": provenance.flags(),
        "threads": cfg.threads,
        "command": list(inputs.context.command),
        "files": finetuned.loaded.read,
        "digests": provenance.digests(inputs.identity, inputs.rows),
        # kept here, since the fine-tuned weights themselves can be freed
        "finetuned": {
            "name": inputs.identity.finetuned,
            "weights": checksums.recorded(finetuned.folder).get(WEIGHTS),
        },
        "seed": cfg.seed,
        "seeds": {kind: derive(cfg.seed, kind, of) for kind, of in purposes.items()},
        "notes": inputs.rows.notes,
        "seconds": timer.seconds,
        "attempts": timer.attempts,
        **provenance.peaks(accelerator),
    }
