"""Learn the region of a skill for any torch module: `localize` (Panigrahi et al., 2023).

`relaxation` defines the symbols θ_pre, θ_ft, Δ, γ, S and c.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from skillgraft.core import regions
from skillgraft.core.best_mask import BestMask, initial_scores
from skillgraft.core.graft import Graft
from skillgraft.core.layout import FlatLayout
from skillgraft.core.movement import base_region
from skillgraft.core.relaxed_graft import RelaxedGraft


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
    """Learn the region in which `finetuned` has its skill, and return it as a Graft.

    Args:
        pretrained: θ_pre, graftable parameters of one dtype. It is left as it was: weights bit for bit,
            training flags, requires_grad and .grad.
        finetuned: θ_ft, a module with the same parameters; left as it was, too.
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
    layout = FlatLayout.of(parameters)
    check_arguments(batches, sparsity, steps, lr, sigmoid_bias)
    # S is at least float32: σ(S − c) near 1e-4 would lose its digits in half precision
    dtype = torch.promote_types(next(iter(parameters.values())).dtype, torch.float32)
    device = next(iter(parameters.values())).device
    data = {name: p.data for name, p in parameters.items()}
    if base is None:
        inside = base_region(targets, data, regions.region_size(sparsity, layout.total)).to(device)
    else:
        inside = indices_of_mask(base, layout).to(device)
    if scores is None:
        initial = initial_scores(layout.total, seed, dtype).to(device)
    else:
        initial = flatten_named(scores, layout, "scores", dtype).to(device)
    with preserved(pretrained):
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
        "requested_sparsity": None if base is not None else sparsity,
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
) -> BestMask:
    """Train the scores S and return the best region, or without an objective (`score`) the last region.

    Args:
        relaxed: the relaxed graft in the parameters of `model`.
        model: the module that `loss` and `score` are given.
        batches: what one step goes over, from its beginning each time.
        loss: (model, batch) → scalar tensor.
        steps: updates of the scores, at least 0.
        lr: learning rate of plain SGD on the scores; a step uses lr ÷ number of batches.
        score: model → float, higher is better, on the rounded graft; None: the last step counts.
    """
    best = BestMask()
    # Differs from the authors' code, which never evaluates the initial mask: the result here is never
    # worse than the start.
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
        # autograd has summed the gradients of the batches: lr / count gives the mean of batch means
        relaxed.step(lr / count)
        if score is not None or step == steps:  # without an objective, the last region only
            consider(best, step, relaxed, model, score)
    return best


def consider(
    best: BestMask,
    step: int,
    relaxed: RelaxedGraft,
    model: nn.Module,
    score: Callable[[nn.Module], float] | None,
) -> None:
    """Evaluate the objective of the rounded graft and keep the best; without one the latest is best.

    Args:
        best: the best region so far; it is offered this one.
        step: the number of updates that the scores have had.
        relaxed: the relaxed graft in the parameters of `model`.
        model: the module that `score` is given, the rounded graft in it.
        score: model → float, higher is better; None: a later step always counts.
    """
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
    """Raise ValueError or TypeError for arguments of `localize` that are out of range.

    Args:
        batches: expected to be re-iterable.
        sparsity: expected in [0, 1].
        steps: expected at least 0.
        lr: expected finite and at least 0.
        bias: expected finite; `sigmoid_bias` of `localize`.
    """
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
    """Return the graftable parameters of `pretrained`, and the tensors of `finetuned` with the same names.

    Raises ValueError where names, shapes, dtypes or devices differ, or a value is not finite.
    """
    chosen = {
        name: p
        for name, p in pretrained.named_parameters()
        if (p.is_floating_point() if graftable is None else graftable(name, p))
    }
    if not chosen:
        raise ValueError("graftable: no parameter of the model is graftable")
    theirs = dict(finetuned.named_parameters())
    if missing := regions.missing_names(chosen, theirs):
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


def indices_of_mask(mask: Mapping[str, Tensor], layout: FlatLayout) -> Tensor:
    """Return the sorted flat indices where a mask, given by parameter name, is 1.

    Raises ValueError for values other than 0 and 1.
    """
    flat = flatten_named(mask, layout, "base")
    inside = flat.nonzero().view(-1)
    if not (flat[inside] == 1).all():
        raise ValueError("base: expected 0 and 1")
    return inside


def flatten_named(
    tensors: Mapping[str, Tensor],
    layout: FlatLayout,
    argument: str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return named tensors as one flat (n,) vector; raises ValueError for other names or shapes."""
    if set(tensors) != set(layout.shapes):
        odd = regions.missing_names(tensors, layout.shapes) or regions.missing_names(
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
def preserved(model: nn.Module) -> Iterator[None]:
    """Keep a model in evaluation mode inside a `with` block, and restore flags and gradients at its end.

    No parameter requires a gradient at the start of the block: RelaxedGraft turns gradients on for the
    graftable parameters only. (The authors' code computes all gradients and discards most of them.)
    """
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
