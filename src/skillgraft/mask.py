"""Learning a region: the relaxed graft θ(S) on flat buffers, and `localize` (method: section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from skillgraft import region
from skillgraft.graft import Graft
from skillgraft.region import Layout
from skillgraft.seeds import derive


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
        self.layout = Layout.of(self.parameters)
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
        return groups([tensors[name] for name in self.parameters], *self.sizes)

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
            pretrained = joined(before)
            delta = torch.sub(joined(after), pretrained, out=spare[: at.stop - at.start])
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
        self.write(lambda at: region.relax(self.scores[at], next(bases), self.bias))

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
            yield region.base_of(inside, at.stop - at.start)

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
            change = region.slope(scores, base, self.bias, out)
            if self.penalty:
                scores.sub_(change, alpha=self.penalty)
            scores.sub_(change.mul_(joined(gradient)).mul_(delta), alpha=lr)
            share = region.relax(scores, base, self.bias, out).to(delta.dtype)
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
                base = region.base_of(chosen, scores.numel())
                chosen = region.where(region.rounded(scores, base, self.bias))
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
                region.write_at(data, indices[name], values)
                parameter.data = data
            yield
        finally:
            for name, parameter in self.parameters.items():
                region.write_at(self.before[name][0], indices[name], saved[name])
                parameter.data = views[name]


def chunk_sizes(like: Tensor) -> tuple[int, int]:
    """Return how many entries of a flat vector to work on at once, and up to how many to copy together.

    To copy views of tensors into one chunk is cheaper than many operations on small ones. A core's
    cache makes it dearer than a few; a GPU, whose kernels take longer to start than to copy, does not.
    """
    if like.device.type != "cpu":
        return 1 << 22, 1 << 22
    size = region.CHUNK * torch.get_num_threads()
    return size, size // 8


def joined(parts: list[Tensor]) -> Tensor:
    """Return the views of a chunk as one tensor: the view itself where there is but one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def groups(tensors: Iterable[Tensor], size: int, small: int) -> list[list[Tensor]]:
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


@torch.no_grad()
def base_region(
    finetuned: Mapping[str, Tensor],
    pretrained: Mapping[str, Tensor],
    count: int,
    barred: Tensor | None = None,
) -> Tensor:
    """Return the sorted flat indices of the `count` largest |Δ|, over all tensors together."""
    sizes = chunk_sizes(next(iter(pretrained.values())))
    total = sum(p.numel() for p in pretrained.values())
    after = {name: finetuned[name].to(p) for name, p in pretrained.items()}
    pairs = [groups(tensors, *sizes) for tensors in (after.values(), pretrained.values())]
    every = region.stride(total)

    def parts() -> Iterator[Tensor]:
        return ((joined(a) - joined(b)).abs_() for a, b in zip(*pairs, strict=True))

    sample = torch.cat(
        [
            (after[n].reshape(-1)[::every] - p.reshape(-1)[::every]).abs_()
            for n, p in pretrained.items()
        ]
    )
    return region.largest(parts, total, count, barred, region.bound(sample, count, total))


def initial_scores(total: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return S, uniform in [0, 1), drawn from the mask's seed, independent of any other."""
    generator = torch.Generator().manual_seed(derive(seed, "mask", "scores"))
    return torch.rand(total, generator=generator, dtype=dtype)


@dataclass
class Best:
    """The best mask so far: a later one must be strictly better."""

    step: int = -1
    score: float = -math.inf
    region: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def offer(self, step: int, score: float, chosen: Tensor) -> bool:
        """Keep a candidate where it is strictly better, and return whether it was."""
        if self.step >= 0 and score <= self.score:
            return False
        self.step, self.score, self.region = step, score, chosen.clone()
        return True


def localize(
    pretrained: nn.Module,
    finetuned: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    sparsity: float = 1e-4,
    steps: int = 100,
    lr: float = 1e7,
    sigmoid_bias: float = 10.0,
    base: Mapping[str, Tensor] | None = None,
    scores: Mapping[str, Tensor] | None = None,
    graftable: Callable[[str, nn.Parameter], bool] | None = None,
    score: Callable[[nn.Module], float] | None = None,
    seed: int = 0,
) -> Graft:
    """Learn the region in which `finetuned` has its skill, and return it as a Graft (section 3).

    Args:
        pretrained, finetuned: modules with the same parameters, graftable ones of one dtype. Both
            are left as they were: weights bit for bit, training flags, requires_grad and .grad.
        batches: re-iterable; one step goes over all of it, and takes the mean of the batch means.
        loss: (model, batch) → scalar tensor; the model is the relaxed graft, in evaluation mode.
        sparsity: share of graftable parameters in the base region, in [0, 1].
        steps: updates of the scores, at least 0.
        lr: learning rate of plain SGD on the scores.
        sigmoid_bias: c; an entry is flipped where its score passes it.
        base: the base region by parameter name, 0/1; `sparsity` is then unused.
        scores: initial scores by parameter name; by default uniform in [0, 1) from `seed`.
        graftable: (name, parameter) → bool; by default every floating-point parameter.
        score: model → float, higher is better, given the rounded graft before the first and after
            each step: the best counts, the earlier of equals. Without it the last step counts.
        seed: of the initial scores.

    Raises:
        ValueError, TypeError: for arguments out of range or modules that do not fit each other.
        FloatingPointError: where the loss is not finite.
    """
    parameters, targets = graftable_pair(pretrained, finetuned, graftable)
    layout = Layout.of(parameters)
    check_arguments(batches, sparsity, steps, lr, sigmoid_bias)
    dtype = torch.promote_types(next(iter(parameters.values())).dtype, torch.float32)
    device = next(iter(parameters.values())).device
    data = {name: p.data for name, p in parameters.items()}
    if base is None:
        inside = base_region(targets, data, region.region_size(sparsity, layout.total)).to(device)
    else:
        given = by_name(base, layout, "base").to(device)
        inside = given.nonzero().view(-1)
        if not (given[inside] == 1).all():
            raise ValueError("base: expected 0 and 1")
        del given
    if scores is None:
        initial = initial_scores(layout.total, seed, dtype).to(device)
    else:
        initial = by_name(scores, layout, "scores", dtype).to(device)
    with untouched(pretrained):
        relaxed = RelaxedGraft(parameters, targets, inside, initial, sigmoid_bias)
        try:
            best = search(relaxed, pretrained, batches, loss, steps, lr, score)
        finally:
            relaxed.close()
    meta = {
        "selector": "learned",
        "step": best.step,
        "steps": steps,
        "lr": lr,
        "seed": seed,
        "asked_sparsity": None if base is not None else sparsity,
    }
    return Graft.take(best.region, data, targets, meta)


def search(
    relaxed: RelaxedGraft,
    model: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    steps: int,
    lr: float,
    score: Callable[[nn.Module], float] | None,
) -> Best:
    """Train the scores and return the best region; without `score` the last."""
    best = Best()
    if score is not None or steps == 0:
        consider(best, 0, relaxed, model, score)
    for step in range(1, steps + 1):
        count = 0
        with torch.enable_grad():
            for batch in batches:
                value = loss(model, batch)
                if not math.isfinite(value.item()):
                    raise FloatingPointError(f"the loss is {value.item()} at step {step}")
                value.backward()
                count += 1
        if count == 0:
            raise ValueError(f"batches: nothing in it at step {step}")
        relaxed.step(lr / count)
        if score is not None or step == steps:  # without a score only the last is asked for
            consider(best, step, relaxed, model, score)
    return best


def consider(
    best: Best,
    step: int,
    relaxed: RelaxedGraft,
    model: nn.Module,
    score: Callable[[nn.Module], float] | None,
) -> None:
    """Score the present rounded graft; without a score a later step always counts."""
    chosen = relaxed.region()
    if score is None:
        best.offer(step, float(step), chosen)
        return
    with relaxed.rounded(chosen), torch.no_grad():
        value = float(score(model))
    if math.isnan(value):
        raise FloatingPointError(f"score: nan at step {step}")
    best.offer(step, value, chosen)


def check_arguments(
    batches: Iterable[Any], sparsity: float, steps: int, lr: float, bias: float
) -> None:
    """Raise ValueError or TypeError for arguments of `localize` that are out of range."""
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity={sparsity}: expected 0 to 1")
    if steps < 0:
        raise ValueError(f"steps={steps}: expected at least 0")
    if not (lr >= 0 and math.isfinite(lr)):
        raise ValueError(f"lr={lr}: expected a finite number, at least 0")
    if not isinstance(bias, (int, float)) or not math.isfinite(bias):
        raise ValueError(f"sigmoid_bias={bias!r}: expected a finite number")
    if iter(batches) is batches:
        raise TypeError("batches: expected something to iterate over again, such as a list")


def graftable_pair(
    pretrained: nn.Module,
    finetuned: nn.Module,
    graftable: Callable[[str, nn.Parameter], bool] | None,
) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """Return the graftable parameters and the fine-tuned tensors of the same names."""
    chosen = {
        name: p
        for name, p in pretrained.named_parameters()
        if (p.is_floating_point() if graftable is None else graftable(name, p))
    }
    if not chosen:
        raise ValueError("graftable: no parameter of the model is graftable")
    theirs = dict(finetuned.named_parameters())
    if missing := region.missing_names(chosen, theirs):
        raise ValueError(f"finetuned: no parameter {missing[0]}")
    for name, parameter in chosen.items():
        if parameter.shape != theirs[name].shape:
            raise ValueError(
                f"{name}: shape {tuple(parameter.shape)} in pretrained, "
                f"{tuple(theirs[name].shape)} in finetuned"
            )
    kinds = {
        (str(p.dtype), str(p.device)) for p in [*chosen.values(), *(theirs[n] for n in chosen)]
    }
    if len(kinds) > 1:
        raise ValueError(f"graftable parameters of several dtypes or devices: {sorted(kinds)}")
    for argument, tensors in (("pretrained", chosen), ("finetuned", theirs)):
        for name in chosen:
            if not torch.isfinite(tensors[name]).all():
                raise ValueError(f"{argument}: {name} has a value that is not finite")
    return chosen, {name: theirs[name].detach() for name in chosen}


def by_name(
    tensors: Mapping[str, Tensor], layout: Layout, argument: str, dtype: torch.dtype | None = None
) -> Tensor:
    """Return named tensors as a flat (n,) vector, after a check of names and shapes."""
    if set(tensors) != set(layout.shapes):
        odd = region.missing_names(tensors, layout.shapes) or region.missing_names(
            layout.shapes, tensors
        )
        raise ValueError(
            f"{argument}: expected the graftable names; {odd[0]} is too much or missing"
        )
    for name, shape in layout.shapes.items():
        if tuple(tensors[name].shape) != tuple(shape):
            raise ValueError(
                f"{argument}: {name} has shape {tuple(tensors[name].shape)}, not {shape}"
            )
    return layout.flatten(tensors, dtype)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and its flags and gradients back at the end."""
    training = {module: module.training for module in model.modules()}
    flags = {p: (p.requires_grad, p.grad) for p in model.parameters()}
    try:
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        yield
    finally:
        for module, flag in training.items():
            module.training = flag
        for parameter, (flag, gradient) in flags.items():
            parameter.requires_grad_(flag)
            parameter.grad = gradient
