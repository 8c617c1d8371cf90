"""Match the tensors of a graft to the parameters of a model, and write values into them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from skillgraft.core import regions
from skillgraft.core.graft_facts import base_name
from skillgraft.runtime.errors import GraftError

if TYPE_CHECKING:
    from skillgraft.core.graft import Graft


class TensorPatch(NamedTuple):
    """The part of a region in one parameter of a model.

    `indices` are flat indices into the parameter, (k,). `before` are the model's values there, (k,).
    """

    name: str
    parameter: nn.Parameter
    indices: Tensor
    before: Tensor

    def write(self, values: Tensor) -> None:
        """Write values, (k,), into the parameter at the indices, in place."""
        at = self.indices.to(self.parameter.device)  # the model may have moved inside the block
        regions.write_at(self.parameter.data, at, values.to(self.parameter))


def find_patches(graft: Graft, model: nn.Module) -> list[TensorPatch]:
    """Return the patch of each tensor of a graft's region in a model, after all checks.

    Raises GraftError where a parameter is missing, has another shape, or does not hold the pre-trained
    values of the graft's base model.
    """
    wanted = sorted(name for name, index in graft.indices.items() if index.numel())
    found = matching_parameters(graft, wanted, dict(model.named_parameters()))
    targets = []
    for name in wanted:
        parameter = found[name]
        if tuple(parameter.shape) != tuple(graft.shapes[name]):
            raise GraftError(
                f"{name}: the model's shape is {tuple(parameter.shape)}, "
                f"the graft's {tuple(graft.shapes[name])}"
            )
        index = graft.indices[name].to(parameter.device)
        before = parameter.data.take(index)
        if not torch.equal(before, graft.pretrained[name].to(parameter)):
            raise GraftError(
                f"{name}: the model's values are not those of the graft's base, {base_name(graft)}"
            )
        targets.append(TensorPatch(name, parameter, index, before))
    return targets


def matching_parameters(
    graft: Graft, wanted: list[str], parameters: dict[str, nn.Parameter]
) -> dict[str, nn.Parameter]:
    """Return the model's parameter for each wanted name of a graft, all under one common prefix.

    The model may have a prefix that the graft lacks (a wrapper or an LM class), or lack a prefix that
    the graft has (a graft learned on the LM class and applied to the encoder). One name may be the end
    of another name, so that all names of the graft, not only the wanted names, decide on the prefix.
    """
    if not wanted:
        return {}
    starts = {name.partition(".")[0] for name in graft.shapes}
    common = f"{starts.pop()}." if len(starts) == 1 else ""
    for drop in dict.fromkeys(["", common]):
        stems = {name: name.removeprefix(drop) for name in graft.shapes}
        first = stems[wanted[0]]
        ending = [full for full in parameters if f".{full}".endswith(f".{first}")]
        fitting = [
            prefix
            for prefix in (full.removesuffix(first) for full in ending)
            if all(prefix + stems[name] in parameters for name in wanted)
        ]
        # a prefix under which all names of the graft exist is preferred, and the empty prefix most
        whole = [p for p in fitting if all(p + stem in parameters for stem in stems.values())]
        best = [p for p in whole if not p] or whole or fitting
        if len(best) > 1:
            raise GraftError(f"the graft fits the model in {len(best)} places: {best}")
        if best:
            return {name: parameters[best[0] + stems[name]] for name in wanted}
    ends = [name for name in wanted if not any(f".{p}".endswith(f".{name}") for p in parameters)]
    missing = f"has no parameter {ends[0]}" if ends else "lacks some of the graft's names"
    raise GraftError(f"the model {missing} (base {base_name(graft)})")
