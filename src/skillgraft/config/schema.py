"""The schema of the configuration: names, types and ranges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from skillgraft.config.choices import (
    Carry,
    Combine,
    Kind,
    LRSchedule,
    Metric,
    Mode,
    Optimizer,
    Pool,
    Selector,
    Source,
    Strategy,
    Trainable,
)


def between(low: float, high: float | None = None, **more: Any) -> Any:
    """Declare a required number with an inclusive range."""
    return field(default=MISSING, metadata={"low": low, "high": high, **more})


def not_identity(default: Any = MISSING) -> Any:
    """Declare a field that cannot change a result; a type is the maker of its default."""
    if isinstance(default, type):
        return field(default_factory=default, metadata={"identity": False})
    return field(default=default, metadata={"identity": False})


@dataclass
class Columns:
    """Names of the columns in a task's files, or in its hub data set."""

    text: str = "text"
    text_a: str = "text_a"
    text_b: str = "text_b"
    label: str = "label"


@dataclass
class Hub:
    """A data set of the Hugging Face hub; the rows' digest, not its name, is the identity."""

    path: str | None = None
    name: str | None = None
    revision: str | None = None
    train: str = "train"
    validation: str | None = None
    test: str = "test"
    labels: list[str] = field(default_factory=list)
    columns: Columns = field(default_factory=Columns)


@dataclass
class TaskConfig:
    """A classification task: table 6 of the method."""

    name: str = MISSING
    template: str = MISSING
    labels: list[str] = MISSING
    verbalizer: Any = MISSING
    metric: Metric = MISSING
    max_length: int = between(8)
    source: Source = not_identity()
    columns: Columns = not_identity(Columns)
    hub: Hub = not_identity(Hub)
    train: str | None = not_identity(None)
    validation: str | None = not_identity(None)
    test: str | None = not_identity(None)
    max_test_examples: int | None = field(default=None, metadata={"low": 1, "high": None})
    ood: list[str] = not_identity(list)
    ood_labels: dict[str, str] = field(default_factory=dict)


@dataclass
class ModelConfig:
    """A pre-trained model; the digest of its files, not its path, is the identity."""

    name: str = MISSING
    path: str = not_identity()
    revision: str | None = not_identity(None)
    blocks: dict[str, list[str]] = not_identity(dict)  # `graftable` takes its list from here
    graftable: list[str] = MISSING
    attention: str = MISSING


@dataclass
class ContinualConfig:
    """A sequence of tasks, and what each stage starts from (section 7)."""

    tasks: list[str] = not_identity(list)
    init_from: str | None = not_identity(None)  # a run; what it left is the identity
    carry: Carry = Carry.graft


@dataclass
class FinetuneConfig:
    """How θ_ft is made from θ_pre (method: section 2)."""

    kind: Kind = MISSING
    pool: Pool | None = None
    feature_norm: float | None = field(default=None, metadata={"low": 0, "high": None})
    optimizer: Optimizer = MISSING
    lr: float = between(0)
    head_lr: float | None = field(default=None, metadata={"low": 0, "high": None})
    steps: int = between(0)
    batch_size: int = between(1)
    weight_decay: float = between(0)
    gradient_clip_val: float = between(0)
    lr_schedule: LRSchedule = MISSING
    evaluate_every: int = between(1)
    trainable: Trainable = Trainable.full
    l1: float = field(default=0.0, metadata={"low": 0, "high": None})
    rank: int | None = field(default=None, metadata={"low": 1, "high": None})
    alpha: int | None = field(default=None, metadata={"low": 1, "high": None})
    tasks: list[str] | None = field(default_factory=list)  # null: a mixture that lacks its tasks


@dataclass
class GraftConfig:
    """How the region is chosen (method: section 3)."""

    selector: Selector = MISSING
    steps: int | None = field(default=None, metadata={"low": 0, "high": None})
    lr: float | None = field(default=None, metadata={"low": 0, "high": None})
    sigmoid_bias: float | None = None
    batch_size: int | None = field(default=None, metadata={"low": 1, "high": None})
    examples_per_step: int | None = field(default=None, metadata={"low": 1, "high": None})
    score_every: int | None = field(default=None, metadata={"low": 1, "high": None})
    score_examples: int | None = field(default=None, metadata={"low": 1, "high": None})
    patience: int | None = field(default=None, metadata={"low": 1, "high": None})
    size_from: str | None = not_identity(None)
    init_score: float | None = field(default=None, metadata={"low": 0, "high": None})
    l1_penalty: float | None = field(default=None, metadata={"low": 0, "high": None})
    path_points: int | None = field(default=None, metadata={"low": 1, "high": None})
    greedy_rounds: int | None = field(default=None, metadata={"low": 1, "high": None})
    per_example: bool | None = None
    layer: str | None = None
    module: str | None = None
    paths: list[str] = not_identity(list)  # the digests of the files are the identity
    paths_selector: Selector | None = not_identity(None)
    combine: Combine | None = None


@dataclass
class CompareConfig:
    """Models that stand beside the graft in metrics.json; none of them is a graft (section 3)."""

    temperature: bool = False
    wise_ft_alphas: list[float] = field(default_factory=list, metadata={"low": 0, "high": 1})
    lottery_steps: list[int] = field(default_factory=list, metadata={"low": 0, "high": None})
    inside_steps: list[int] = field(default_factory=list, metadata={"low": 1, "high": None})


@dataclass
class ClaimConfig:
    """What a sweep is to show at its end; nothing of it can change a run."""

    name: str | None = None  # a claim of analysis/claims/registry.py
    sparsity: float | None = None  # the sparsity at which the paper's figure is tested
    # OOD sets under a small shift, SET or TASK/SET, and under a large one
    small_shift: list[str] = field(default_factory=list)
    large_shift: list[str] = field(default_factory=list)
    similar: list[list[str]] = field(
        default_factory=list
    )  # [[a,b],[c,d,e]]: groups of similar tasks


@dataclass
class TrainerConfig:
    """Where and how the two Lightning modules run."""

    accelerator: str = MISSING
    devices: int = field(default=1, metadata={"low": 1, "high": None})
    strategy: Strategy = Strategy.ddp
    precision: str = MISSING
    evaluation_batch_size: int = between(1)
    compile: bool = False
    progress: bool | None = not_identity()


@dataclass
class LoggerConfig:
    """What Weights & Biases is told."""

    mode: Mode = MISSING
    project: str = MISSING
    entity: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class RunConfig:
    """One run: a task, a model, a fine-tuning, a region and a seed.

    `sparsity` is the share of the graftable parameters that the region *keeps*.
    """

    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    continual: ContinualConfig = field(default_factory=ContinualConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    graft: GraftConfig = field(default_factory=GraftConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = not_identity(LoggerConfig)
    claim: ClaimConfig | None = not_identity(None)  # the sweep files have one
    sparsity: float = between(0, 1)
    seed: int = between(0)
    shots: int | None = field(default=MISSING, metadata={"low": 1, "high": None})
    threads: int = between(1)
    store: str = not_identity()
    data_dir: str | None = not_identity()
    force: bool = not_identity()


@dataclass
class ResolvedConfig(RunConfig):
    """A run's configuration with all that the program fills in: what a run stores as config.yaml.

    The tasks that the user's configuration names stand in it as their files define them.
    """

    ood_tasks: dict[str, TaskConfig] = not_identity(dict)  # task.ood
    other_tasks: dict[str, TaskConfig] = not_identity(
        dict
    )  # of a mixture, or earlier in a sequence
