"""The relaxed graft θ(S) in a model's own parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from skillgraft.core import regions, relaxation, top_k
from skillgraft.core.flat_model import FlatModel, join_views


class RelaxedGraft(FlatModel):
    """θ(S) = θ_pre + γ(S) ⊙ Δ, living in a model's own parameters while it is open.

    Beside what a FlatModel has: the scores S, and the sorted flat indices where γ_base is 1.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        finetuned: Mapping[str, Tensor],
        base: Tensor,
        scores: Tensor,
        bias: float,
        penalty: float = 0.0,
    ) -> None:
        self.base, self.scores = base, scores  # (s·n,) indices and (n,) float
        super().__init__(parameters, finetuned)
        self.bias, self.penalty = bias, penalty
        try:
            self.build()
        except BaseException:  # the model is not left as views of a half-written vector
            self.close()
            raise

    def build(self) -> None:
        """Write θ(S) into the parameters."""
        bases = self.bases()
        self.write(lambda at: relaxation.relax(self.scores[at], next(bases), self.bias))

    def cut(self) -> None:
        """Cut the base region, too, into those of the chunks."""
        super().cut()
        ends = torch.tensor([at.stop for at in self.slices], device=self.base.device)
        self.bounds = [0, *torch.searchsorted(self.base, ends).tolist()]

    def inside(self) -> Iterator[Tensor]:
        """Yield where in each chunk γ_base is 1, as indices."""
        for at, (first, last) in zip(self.slices, pairwise(self.bounds), strict=True):
            yield self.base[first:last] - at.start

    def bases(self) -> Iterator[Tensor]:
        """Yield γ_base of each chunk as `relax` takes it."""
        for at, inside in zip(self.slices, self.inside(), strict=True):
            yield relaxation.as_mask(inside, at.stop - at.start)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """S ← S − lr · (1 − 2γ_base) ⊙ g ⊙ Δ ⊙ σ'(S − c), g the gradient gathered since the last step.

        With a penalty λ, less λ · (1 − 2γ_base) ⊙ σ'(S − c) too: the l1 norm of γ. Clears the gradient
        and writes the new θ(S).
        """
        gradients, spare = self.chunked(self.take_gradients()), self.scores.new_empty(self.sizes[0])
        # all in one pass: memory is what it costs
        for (at, pretrained, delta), gradient, base in zip(
            self.chunks(), gradients, self.bases(), strict=True
        ):
            scores, out = self.scores[at], spare[: at.stop - at.start]
            change = relaxation.relax_grad(scores, base, self.bias, out)
            if self.penalty:
                scores.sub_(change, alpha=self.penalty)
            scores.sub_(change.mul_(join_views(gradient)).mul_(delta), alpha=lr)
            share = relaxation.relax(scores, base, self.bias, out).to(delta.dtype)
            torch.addcmul(pretrained, share, delta, out=self.theta[at])

    def to(self, device: torch.device) -> None:
        """Move flat vectors, θ_pre and θ_ft to the device that the model has been moved to, and link."""
        if self.theta.device != device:
            for name in ("theta", "base", "scores"):
                setattr(self, name, getattr(self, name).to(device))
            self.before = {n: (p.to(device), g, flag) for n, (p, g, flag) in self.before.items()}
            self.finetuned = {n: tensor.to(device) for n, tensor in self.finetuned.items()}
            self.cut()
        self.link()

    def region(self) -> Tensor:
        """Return the sorted flat indices of round(γ(S))."""
        found = []
        for at, chosen in zip(self.slices, self.inside(), strict=True):
            scores = self.scores[at]
            if not scores.max() < self.bias:  # else nothing is flipped, as nearly everywhere
                base = relaxation.as_mask(chosen, scores.numel())
                chosen = top_k.true_indices(relaxation.round_mask(scores, base, self.bias))
            found.append(chosen + at.start)
        return torch.cat(found)

    @contextmanager
    def rounded(self, chosen: Tensor) -> Iterator[None]:
        """Make the model the rounded graft of a region inside a `with` block.

        Only the region's entries are written, into θ_pre's own tensors, and put back exactly.
        """
        indices = self.layout.split(chosen)
        saved = {n: data.take(indices[n]) for n, (data, _, _) in self.before.items()}
        views = {n: p.data for n, p in self.parameters.items()}
        try:
            for name, parameter in self.parameters.items():
                data = self.before[name][0]
                values = self.finetuned[name].take(indices[name])
                regions.write_at(data, indices[name], values)
                parameter.data = data
            yield
        finally:
            for name, parameter in self.parameters.items():
                regions.write_at(self.before[name][0], indices[name], saved[name])
                parameter.data = views[name]
