"""The values that can be chosen by name."""

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
