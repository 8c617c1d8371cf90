"""A model's graftable parameters as views of one flat vector.

Mask training rewrites all graftable parameters at every step. One flat vector, cut into chunks that
fit a core's cache, makes this one pass over memory instead of several operations on each tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from skillgraft.core import top_k
from skillgraft.core.layout import FlatLayout


class FlatModel:
    """A model's graftable parameters as views of one flat vector θ, (n,).

    The parameters' own tensors are kept as θ_pre, and `close` puts them back bit for bit. The memory is
    four times the graftable parameters: θ_pre, θ, θ_ft and the gradients that autograd makes. Δ is
    computed chunk by chunk and never stored. (The authors' code holds three models, Δ, S and γ_base.)
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], finetuned: Mapping[str, Tensor]
    ) -> None:
        self.parameters = dict(parameters)
        self.layout = FlatLayout.of(self.parameters)
        # name → (θ_pre, gradient, requires_grad), as `close` restores them
        self.before = {
            name: (p.data, p.grad, p.requires_grad) for name, p in self.parameters.items()
        }
        first = next(iter(self.before.values()))[0]
        self.theta = torch.empty(self.layout.total, dtype=first.dtype, device=first.device)  # (n,)
        self.finetuned = {n: finetuned[n].to(p) for n, p in self.pretrained.items()}
        self.cut()
        self.link()

    def cut(self) -> None:
        """Cut θ_pre and θ_ft into chunks: lists of flat views of their tensors."""
        self.sizes = chunk_sizes(self.theta)
        self.parts = [self.chunked(self.pretrained), self.chunked(self.finetuned)]
        # the slice of the flat vector that each chunk covers
        ends = list(accumulate(sum(p.numel() for p in part) for part in self.parts[0]))
        self.slices = [slice(*pair) for pair in pairwise([0, *ends])]

    def chunked(self, tensors: Mapping[str, Tensor]) -> list[list[Tensor]]:
        """Return the chunks of named tensors, each as a list of flat views."""
        return group_views([tensors[name] for name in self.parameters], *self.sizes)

    def link(self) -> None:
        """Make every parameter a view of the flat vector θ, and clear its gradient."""
        views = self.layout.views(self.theta)
        for name, parameter in self.parameters.items():
            parameter.data = views[name]
            parameter.requires_grad_(True)
            parameter.grad = None

    def take_gradients(self) -> dict[str, Tensor]:
        """Return the gradients accumulated since the last call by parameter name, and clear them.

        A parameter that the loss does not depend on has a gradient of zeros.
        """
        out = {}
        for name, parameter in self.parameters.items():
            gradient, parameter.grad = parameter.grad, None
            # one zero, expanded: no memory for a gradient that does not exist
            out[name] = (
                parameter.new_zeros(()).expand_as(parameter) if gradient is None else gradient
            )
        return out

    @property
    def pretrained(self) -> dict[str, Tensor]:
        """θ_pre by parameter name: the tensors themselves, not copies."""
        return {name: data for name, (data, _, _) in self.before.items()}

    @torch.no_grad()
    def chunks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield (slice of the flat vector, θ_pre there, Δ there) for each chunk.

        The tensors are to be read only, and Δ is overwritten when the next chunk is requested.
        """
        spare = self.theta.new_empty(self.sizes[0])  # one buffer for all chunks stays in the cache
        for at, before, after in zip(self.slices, *self.parts, strict=True):
            pretrained = join_views(before)
            delta = torch.sub(join_views(after), pretrained, out=spare[: at.stop - at.start])
            yield at, pretrained, delta

    @torch.no_grad()
    def write(self, gamma: Callable[[slice], Tensor | float]) -> None:
        """Write θ = θ_pre + γ ⊙ Δ into the parameters.

        `gamma` maps the slice of a chunk to γ there: a tensor of the chunk's size, or one number for all
        of its parameters, as in WiSE-FT's θ_pre + αΔ (Wortsman et al., CVPR 2022).
        """
        for at, pretrained, delta in self.chunks():
            share = gamma(at)
            if isinstance(share, Tensor):
                torch.addcmul(pretrained, share.to(delta.dtype), delta, out=self.theta[at])
            else:
                torch.add(pretrained, delta, alpha=share, out=self.theta[at])

    def times_delta(self, values: Tensor) -> Tensor:
        """Multiply values, (n,), by Δ in place, and return the values."""
        for at, _, delta in self.chunks():
            values[at].mul_(delta)
        return values

    def close(self) -> None:
        """Give every parameter its own tensor, gradient and requires_grad flag back."""
        for name, parameter in self.parameters.items():
            data, gradient, flag = self.before[name]
            parameter.data, parameter.grad = data, gradient
            parameter.requires_grad_(flag)


def chunk_sizes(like: Tensor) -> tuple[int, int]:
    """Return two numbers of elements: the size of a chunk, and the largest chunk made by copying.

    Small tensors are copied into one chunk, because many operations on small tensors cost more than the
    copy. On a CPU a copy of large tensors costs more than it saves, since it passes through the cache.
    On a GPU the start of a kernel costs more than the copy, so that a chunk of any size may be copied.
    """
    if like.device.type != "cpu":
        return 1 << 22, 1 << 22
    size = top_k.CHUNK * torch.get_num_threads()  # each thread works on one CHUNK
    return size, size // 8


def join_views(parts: list[Tensor]) -> Tensor:
    """Return the views of a chunk as one flat tensor: a single view itself, several views copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def group_views(tensors: Iterable[Tensor], size: int, small: int) -> list[list[Tensor]]:
    """Return tensors, in order, as groups of flat views of at most `size` elements each.

    Consecutive views share a group as long as the group has at most `small` elements.
    """
    out: list[list[Tensor]] = []
    held = 0  # elements in the last group
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
