"""What a stage of a sequence of tasks starts from, and the parameters that earlier stages reserved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skillgraft.config.choices import Carry
from skillgraft.config.schema import RunConfig
from skillgraft.runtime.errors import InputError
from skillgraft.runtime.files import read_json
from skillgraft.store import checksums, sequences
from skillgraft.store.folders import Store
from skillgraft.store.names import GRAFT, STATUS, WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor

    from skillgraft.models.classifier import Classifier


@dataclass(frozen=True)
class StartingPoint:
    """The weights that a run starts from.

    - `theta_base`: the graftable parameters that a graft of this run is relative to;
    - `theta_pre`: those that fine-tuning starts from. They are `theta_base`, with the grafts of the
      earlier stages where a sequence carries grafts;
    - `reserved`: the sorted flat indices of the regions of earlier stages.
    """

    theta_base: Mapping[str, Tensor]
    theta_pre: Mapping[str, Tensor]
    reserved: Tensor

    @property
    def graftable(self) -> int:
        """The number of graftable parameters."""
        return sum(tensor.numel() for tensor in self.theta_base.values())

    def outside_reserved(self, theta_finetuned: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return θ_ft with earlier stages' regions as they left them: not this run's to change."""
        from skillgraft.core import layout, regions

        if not self.reserved.numel():
            return theta_finetuned
        out = {name: tensor.clone() for name, tensor in theta_finetuned.items()}
        for name, entries in layout.FlatLayout.of(out).split(self.reserved).items():
            regions.write_at(out[name], entries, self.theta_pre[name].cpu().take(entries))
        return out


def starting_point(cfg: RunConfig, classifier: Classifier) -> StartingPoint:
    """Keep θ_pre; in a sequence, what the last stage left, which the classifier then has."""
    import torch

    # the classifier's own tensors are trained in place
    theta_base = {n: p.detach().clone() for n, p in classifier.graftable.items()}
    reserved = torch.empty(0, dtype=torch.int64)
    before = sequences.chain(cfg)
    if not before:
        return StartingPoint(theta_base, theta_base, reserved)
    if cfg.continual.carry is Carry.graft:
        from skillgraft.core.graft import Graft

        grafts = [Graft.load(stage["folder"] / GRAFT) for stage in before]
        for graft in grafts:
            graft.apply(classifier.model)
        reserved = torch.cat([graft.region() for graft in grafts]).unique()
    else:
        from safetensors.torch import load_file

        last = read_json(before[-1]["folder"] / STATUS)
        weights = Store(before[-1]["folder"].parent).finetuned(last["finetuned"])
        if not checksums.is_complete(weights):
            raise InputError(
                f"continual.init_from={last['id']}: its fine-tuned weights are not in {weights}"
            )
        classifier.restore(load_file(weights / WEIGHTS))
    theta_pre = {n: p.detach().clone() for n, p in classifier.graftable.items()}
    if cfg.continual.carry is not Carry.graft:
        theta_base = theta_pre
    return StartingPoint(theta_base, theta_pre, reserved)
