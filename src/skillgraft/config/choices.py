"""The values that can be chosen by name, and which keys each selector reads."""

from __future__ import annotations

from enum import StrEnum

PRECISIONS = (
    "32-true",
    "bf16-mixed",
)  # parameters stay in fp32; fp16 would need a scaler in checkpoints


class Source(StrEnum):
    """Where the rows of a task come from."""

    hub = "hub"
    embedded = "embedded"
    files = "files"


class Metric(StrEnum):
    """The task's own metric; F1 is that of the last label."""

    accuracy = "accuracy"
    f1 = "f1"
    matthews = "matthews"


class Kind(StrEnum):
    """How a model is fine-tuned on a task."""

    prompt = "prompt"
    linear = "linear"
    autoregressive = "autoregressive"


class Trainable(StrEnum):
    """Which parameters fine-tuning trains: all graftable ones, their biases, or low-rank updates."""

    full = "full"
    bias = "bias"
    lora = "lora"


class Pool(StrEnum):
    """Which hidden state a linear head reads; `last` is a causal LM's, through the task's template."""

    first = "first"
    mask = "mask"
    mean = "mean"
    last = "last"


class Optimizer(StrEnum):
    """The optimiser of fine-tuning."""

    sgd = "sgd"
    adamw = "adamw"


class LRSchedule(StrEnum):
    """How the learning rate of fine-tuning goes over the steps."""

    linear = "linear"
    constant = "constant"


class Strategy(StrEnum):
    """How fine-tuning uses several devices: a whole model on each, or a shard of it."""

    ddp = "ddp"
    fsdp = "fsdp"


class Selector(StrEnum):
    """How a region is chosen; `learned` is the paper's (Panigrahi et al., 2023)."""

    learned = "learned"
    stitch_l1 = "stitch_l1"
    attribution = "attribution"
    fisher = "fisher"
    movement = "movement"
    magnitude = "magnitude"
    random = "random"
    bias = "bias"
    layer = "layer"
    module = "module"
    file = "file"


# The keys of `graft` that each selector reads, beside its name.
MASKED = (
    "steps", "lr", "batch_size", "examples_per_step", "score_every", "score_examples", "patience",
)  # fmt: skip
READ: dict[Selector, tuple[str, ...]] = {
    Selector.learned: (*MASKED, "sigmoid_bias"),
    Selector.stitch_l1: (*MASKED, "init_score", "l1_penalty"),
    Selector.attribution: ("path_points", "greedy_rounds", "batch_size", "examples_per_step"),
    Selector.fisher: ("path_points", "per_example", "batch_size", "examples_per_step"),
    Selector.layer: ("layer",),
    Selector.module: ("module",),
    Selector.file: ("combine",),
}
TRAINED = (Selector.learned, Selector.stitch_l1)  # a size to start from; they find their own
UNSIZED = (Selector.bias, Selector.layer, Selector.module, Selector.file)  # `sparsity` is not read
OPTIONAL = (  # may be null
    "score_every", "score_examples", "patience", "per_example", "greedy_rounds",
)  # fmt: skip


class Combine(StrEnum):
    """How stored grafts become one."""

    union = "union"
    intersection = "intersection"


class Carry(StrEnum):
    """What a stage of continual learning starts from: the last one's graft, or its θ_ft."""

    graft = "graft"
    finetuned = "finetuned"


class Mode(StrEnum):
    """Where W&B sends its records."""

    online = "online"
    offline = "offline"
    none = "none"
