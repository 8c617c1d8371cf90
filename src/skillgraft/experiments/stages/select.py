"""Select: the region, and the graft of it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from skillgraft.config import selectors
from skillgraft.experiments.selection import Selection
from skillgraft.experiments.stages.finetune import FineTunedRun
from skillgraft.experiments.stages.inputs import RunInputs
from skillgraft.experiments.stages.load import LoadedRun
from skillgraft.store.names import GRAFT, HISTORY, WEIGHTS
from skillgraft.training.names import MASK

if TYPE_CHECKING:
    from torch import Tensor

    from skillgraft.core.graft import Graft
    from skillgraft.tracking.wandb_run import WandbRun

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SelectedRun:
    """A run that has its graft; the classifier stands at θ_pre, with the fine-tuned head."""

    finetuned: FineTunedRun
    theta_finetuned: Mapping[str, Tensor]
    graft: Graft


def select(finetuned: FineTunedRun, tracker: WandbRun) -> SelectedRun:
    """Make the graft of the region that the selector chooses, or take an equivalent run's."""
    from safetensors.torch import load_file

    loaded = finetuned.loaded
    theta_pre, weights = loaded.start.theta_pre, load_file(finetuned.folder / WEIGHTS)
    head = {n.removeprefix("head."): t for n, t in weights.items() if n.startswith("head.")}
    theta_finetuned = {name: weights[name] for name in theta_pre}
    loaded.classifier.restore({**theta_pre, **{f"head.{n}": t for n, t in head.items()}})
    graft = graft_of_equivalent_run(loaded.inputs)
    if graft is None:
        graft = make_graft(loaded, theta_finetuned, head, tracker)
    return SelectedRun(finetuned, theta_finetuned, graft)


def make_graft(
    loaded: LoadedRun,
    theta_finetuned: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    tracker: WandbRun,
) -> Graft:
    """Return the graft of the region that the selector chooses, with the fine-tuned head."""
    import torch

    from skillgraft.core.graft import Graft
    from skillgraft.core.graft_facts import tasks_of

    cfg, start, meta = loaded.inputs.cfg, loaded.start, graft_meta(loaded.inputs, head)
    if (stored := loaded.stored_graft) is not None:
        meta = {**stored.meta, **meta, "regions": tasks_of(stored)}
        return replace(stored, meta=meta, head=head)
    changed = start.outside_reserved(theta_finetuned)
    if all(torch.equal(changed[n], p.cpu()) for n, p in start.theta_pre.items()):
        log.warning("fine-tuning moved nothing: every graft is the pre-trained model")
    selection = Selection(
        cfg=cfg,
        classifier=loaded.classifier,
        theta_pre=start.theta_pre,
        theta_finetuned=changed,
        size=requested_size(loaded),
        reserved=start.reserved,
        train=loaded.train[cfg.task.name],
        validation=loaded.evaluation_set.splits["validation"],
        pad=loaded.pad,
        device=loaded.device,
        folder=loaded.inputs.folder,
        log=tracker.log,
        bars=loaded.inputs.bars,
    )
    with sharing_pretrained_storage(loaded), loaded.classifier.fixed_head():
        chosen = choose_region(selection).cpu()
    chosen = chosen[~torch.isin(chosen, start.reserved)]
    return Graft.take(chosen, start.theta_base, changed, meta, head)


def choose_region(selection: Selection) -> Tensor:
    """Return the sorted flat indices that the configured selector chooses."""
    chosen: Tensor = selectors.find(selection.cfg.graft.selector).select(selection)
    return chosen


@contextmanager
def sharing_pretrained_storage(loaded: LoadedRun) -> Iterator[None]:
    """Let the classifier have θ_pre's own tensors inside a `with` block: one copy less in memory.

    What chooses a region leaves them as they were. What comes after would not: at the end the
    classifier has its own again.
    """
    theta_pre = loaded.start.theta_pre
    ours = {
        name: parameter
        for name, parameter in loaded.classifier.graftable.items()
        if parameter.device == theta_pre[name].device
    }
    for name, parameter in ours.items():
        parameter.data = theta_pre[name]
    try:
        yield
    finally:
        for name, parameter in ours.items():
            parameter.data = theta_pre[name].clone()


def requested_size(loaded: LoadedRun) -> int:
    """Return the number of parameters that a selector with a size is asked for."""
    from skillgraft.core import regions

    cfg, start, size = loaded.inputs.cfg, loaded.start, loaded.inputs.size
    if size is None:
        size = regions.region_size(cfg.sparsity, start.graftable)
    if not selectors.options(cfg).reads_sparsity:
        return size
    left = start.graftable - start.reserved.numel()
    if size == 0:
        log.warning(
            "sparsity=%g of %d parameters is an empty region", cfg.sparsity, start.graftable
        )
    if size > left:
        log.warning("%d parameters are requested, earlier stages have left %d", size, left)
    return min(size, left)


def graft_meta(inputs: RunInputs, head: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what the graft file says of itself."""
    cfg = inputs.cfg
    sized = selectors.options(cfg).reads_sparsity
    return {
        "model": cfg.model.name,
        "task": cfg.task.name,
        "labels": list(cfg.task.labels),
        "selector": cfg.graft.selector,
        "requested_sparsity": cfg.sparsity if sized else None,
        "seed": cfg.seed,
        "run": inputs.identity.id,
        "finetune": cfg.finetune.kind.value,
        "pool": cfg.finetune.pool.value if head and cfg.finetune.pool else None,
        "norm": cfg.finetune.feature_norm if head else None,
    }


def graft_of_equivalent_run(inputs: RunInputs) -> Graft | None:
    """Return the graft of a complete run that differs in comparison models only, if there is one."""
    from skillgraft.core.graft import Graft
    from skillgraft.runtime.errors import GraftError

    same = inputs.store.runs("region", inputs.identity.region)
    found = next((run["id"] for run in same if run["id"] != inputs.identity.id), None)
    if found is None:
        return None
    folder = inputs.store.run(found)
    try:
        graft = Graft.load(folder / GRAFT)
        if (folder / HISTORY).is_file():
            shutil.copy(folder / HISTORY, inputs.folder)
    except (GraftError, OSError) as error:  # altered, or just being replaced: make it here
        log.warning("region: not taken from %s (%s)", found, error)
        return None
    log.info("region: taken from %s", found)
    (inputs.folder / MASK).unlink(missing_ok=True)  # of a try that was killed
    return replace(graft, meta={**graft.meta, "run": inputs.identity.id})
