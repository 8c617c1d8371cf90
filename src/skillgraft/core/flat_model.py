"""A model's graftable parameters as views of one flat vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from skillgraft.core import top_k
from skillgraft.core.layout import FlatLayout


class FlatModel:
    """A model's graftable parameters as views of one flat vector θ.

    The tensors that the parameters had are kept as θ_pre and put back by `close`, bit for bit.
    Model-sized memory: θ_pre, θ, θ_ft and the gradients, which stay the tensors that autograd makes;
    Δ is made of θ_ft where it is needed.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], finetuned: Mapping[str, Tensor]
    ) -> None:
        self.parameters = dict(parameters)
        self.layout = FlatLayout.of(self.parameters)
        self.before = {
            name: (p.data, p.grad, p.requires_grad) for name, p in self.parameters.items()
        }
        first = next(iter(self.before.values()))[0]
        self.theta = torch.empty(self.layout.total, dtype=first.dtype, device=first.device)
        self.finetuned = {n: finetuned[n].to(p) for n, p in self.pretrained.items()}
        self.cut()
        self.link()

    def cut(self) -> None:
        """Cut θ_pre and θ_ft into chunks, of views of their tensors."""
        self.sizes = chunk_sizes(self.theta)
        self.parts = [self.chunked(self.pretrained), self.chunked(self.finetuned)]
        ends = list(accumulate(sum(p.numel() for p in part) for part in self.parts[0]))
        self.slices = [slice(*pair) for pair in pairwise([0, *ends])]

    def chunked(self, tensors: Mapping[str, Tensor]) -> list[list[Tensor]]:
        """Return the chunks of named tensors, each of one or more flat views."""
        return group_views([tensors[name] for name in self.parameters], *self.sizes)

    def link(self) -> None:
        """Make the parameters views of the flat vector, without a gradient."""
        views = self.layout.views(self.theta)
        for name, parameter in self.parameters.items():
            parameter.data = views[name]
            parameter.requires_grad_(True)
            parameter.grad = None

    def take_gradients(self) -> dict[str, Tensor]:
        """Return by name what autograd has gathered since the last call, and clear it.

        A parameter that the loss did not reach has zeros.
        """
        out = {}
        for name, parameter in self.parameters.items():
            gradient, parameter.grad = parameter.grad, None
            out[name] = (
                parameter.new_zeros(()).expand_as(parameter) if gradient is None else gradient
            )
        return out

    @property
    def pretrained(self) -> dict[str, Tensor]:
        """θ_pre by name: the very tensors that the parameters had."""
        return {name: data for name, (data, _, _) in self.before.items()}

    @torch.no_grad()
    def chunks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield slices of the flat vectors, with θ_pre and Δ there: to be read, until the next."""
        spare = self.theta.new_empty(self.sizes[0])  # used again, it stays in the cache
        for at, before, after in zip(self.slices, *self.parts, strict=True):
            pretrained = join_views(before)
            delta = torch.sub(join_views(after), pretrained, out=spare[: at.stop - at.start])
            yield at, pretrained, delta

    @torch.no_grad()
    def write(self, gamma: Callable[[slice], Tensor | float]) -> None:
        """Write θ_pre + γ ⊙ Δ into the parameters; `gamma` gives γ of a chunk, or a number."""
        for at, pretrained, delta in self.chunks():
            share = gamma(at)
            if isinstance(share, Tensor):
                torch.addcmul(pretrained, share.to(delta.dtype), delta, out=self.theta[at])
            else:
                torch.add(pretrained, delta, alpha=share, out=self.theta[at])

    def times_delta(self, values: Tensor) -> Tensor:
        """Multiply (n,) values by Δ, in place, and return them."""
        for at, _, delta in self.chunks():
            values[at].mul_(delta)
        return values

    def close(self) -> None:
        """Give every parameter back its own tensor, gradient and flag."""
        for name, parameter in self.parameters.items():
            data, gradient, flag = self.before[name]
            parameter.data, parameter.grad = data, gradient
            parameter.requires_grad_(flag)


def chunk_sizes(like: Tensor) -> tuple[int, int]:
    """Return how many entries of a flat vector to work on at once, and up to how many to copy together.

    To copy views of tensors into one chunk is cheaper than many operations on small ones. A core's
    cache makes it dearer than a few; a GPU, whose kernels take longer to start than to copy, does not.
    """
    if like.device.type != "cpu":
        return 1 << 22, 1 << 22
    size = top_k.CHUNK * torch.get_num_threads()
    return size, size // 8


def join_views(parts: list[Tensor]) -> Tensor:
    """Return the views of a chunk as one tensor: the view itself where there is but one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def group_views(tensors: Iterable[Tensor], size: int, small: int) -> list[list[Tensor]]:
    """Return tensors as flat views in order, cut to at most `size` entries, those up to `small` together."""
    out: list[list[Tensor]] = []
    held = 0
    for tensor in tensors:
        for part in tensor.detach().reshape(-1).split(size):
            if part.numel() == 0:
                continue
            if not out or held + part.numel() > small:
                out.append([])
                held = 0
            out[-1].append(part)
            held += part.numel()
    return out
