"""The relaxed graft θ(S) = θ_pre + γ(S) ⊙ Δ inside a model's own parameters (symbols: `relaxation`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from skillgraft.core import regions, relaxation, top_k
from skillgraft.core.flat_model import FlatModel, join_views


class RelaxedGraft(FlatModel):
    """The relaxed graft θ(S) = θ_pre + γ(S) ⊙ Δ, held in a model's own parameters until `close`.

    To a FlatModel this adds the scores S, (n,), and γ_base as sorted flat indices, (k,).

    Args:
        parameters: the model's graftable parameters by name; they hold θ_pre, and θ(S) while this is open.
        finetuned: θ_ft, tensors of the same names and shapes.
        base: sorted flat indices where γ_base is 1, (s·n,) int64.
        scores: S, (n,) float; trained in place.
        bias: c of σ(S − c).
        penalty: λ of the ℓ1 term on γ, at least 0; 0 without one.
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
        self.base, self.scores = base, scores  # (k,) int64 indices of γ_base, and (n,) float S
        super().__init__(parameters, finetuned)
        self.bias, self.penalty = bias, penalty  # c, and the strength λ of the ℓ1 penalty on γ
        try:
            self.build()
        except BaseException:  # interrupts too: no parameter may stay half-written
            self.close()
            raise

    def build(self) -> None:
        """Write θ(S) = θ_pre + γ(S) ⊙ Δ into the parameters."""
        bases = self.bases()
        self.write(lambda at: relaxation.relax(self.scores[at], next(bases), self.bias))

    def cut(self) -> None:
        """Cut θ_pre and θ_ft into chunks, and find where each chunk's part of γ_base starts and ends."""
        super().cut()
        ends = torch.tensor([at.stop for at in self.slices], device=self.base.device)
        self.bounds = [0, *torch.searchsorted(self.base, ends).tolist()]

    def inside(self) -> Iterator[Tensor]:
        """Yield, for each chunk, the indices into the chunk where γ_base is 1."""
        for at, (first, last) in zip(self.slices, pairwise(self.bounds), strict=True):
            yield self.base[first:last] - at.start

    def bases(self) -> Iterator[Tensor]:
        """Yield γ_base of each chunk in the form that `relax` reads fastest."""
        for at, inside in zip(self.slices, self.inside(), strict=True):
            yield relaxation.as_mask(inside, at.stop - at.start)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Take one SGD step on S and write the new θ(S) into the parameters.

            S ← S − (lr · g ⊙ Δ + λ) ⊙ dγ/dS,    dγ/dS = (1 − 2γ_base) ⊙ σ'(S − c)

        g = ∂L/∂θ is the gradient accumulated since the last step, which is cleared, so that g ⊙ Δ is
        ∂L/∂γ by the chain rule. λ is `penalty`, the strength of the ℓ1 norm of γ; lr does not scale λ.
        """
        # Differs from the code of Localize-and-Stitch (He et al., TMLR 2025), whose penalty pushes every
        # |S| up: here λ pulls γ toward 0, which is the ℓ1 norm of their paper.
        gradients, spare = self.chunked(self.take_gradients()), self.scores.new_empty(self.sizes[0])
        # Update and rebuild in one pass over the chunks: the step is limited by memory bandwidth.
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
        """Move θ, θ_pre, θ_ft, S and γ_base to a device, and make the parameters views of θ again.

        Lightning moves a model by replacing the data of its parameters, which ends their being views.
        """
        if self.theta.device != device:
            for name in ("theta", "base", "scores"):
                setattr(self, name, getattr(self, name).to(device))
            self.before = {n: (p.to(device), g, flag) for n, (p, g, flag) in self.before.items()}
            self.finetuned = {n: tensor.to(device) for n, tensor in self.finetuned.items()}
            self.cut()
        self.link()

    def region(self) -> Tensor:
        """Return the region round(γ(S)) as sorted flat indices."""
        found = []
        for at, chosen in zip(self.slices, self.inside(), strict=True):
            scores = self.scores[at]
            # Where every S < c no bit of γ_base is flipped; in most chunks this saves the rounding.
            if not scores.max() < self.bias:
                base = relaxation.as_mask(chosen, scores.numel())
                chosen = top_k.true_indices(relaxation.round_mask(scores, base, self.bias))
            found.append(chosen + at.start)
        return torch.cat(found)

    @contextmanager
    def rounded(self, chosen: Tensor) -> Iterator[None]:
        """Make the model the rounded graft of a region inside a `with` block.

        Only the region's parameters are written, into θ_pre's own tensors, and restored bit for bit.
        Differs from the authors' code, which adds round(γ) ⊙ Δ to all graftable parameters:
        θ_pre + (θ_ft − θ_pre) need not equal θ_ft in floating point.
        """
        indices = self.layout.split(chosen)
        # saved: θ_pre inside the region, (k,) per tensor; views: θ(S), with which mask training goes on
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
