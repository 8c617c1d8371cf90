"""The schema of the configuration: names, types and ranges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from skillgraft.config.choices import (
    Kind,
    Metric,
    Mode,
    Optimizer,
    Pool,
    Rule,
    Schedule,
    Selector,
    Source,
    Strategy,
    Take,
    Train,
)


def between(low: float, high: float | None = None, **more: Any) -> Any:
    """Declare a required number with an inclusive range."""
    return field(default=MISSING, metadata={"low": low, "high": high, **more})


def silent(default: Any = MISSING) -> Any:
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
    source: Source = silent()
    columns: Columns = silent(Columns)
    hub: Hub = silent(Hub)
    train: str | None = silent(None)
    validation: str | None = silent(None)
    test: str | None = silent(None)
    test_rows: int | None = field(default=None, metadata={"low": 1, "high": None})
    ood: list[str] = silent(list)
    ood_labels: dict[str, str] = field(default_factory=dict)


@dataclass
class ModelConfig:
    """A pre-trained model; the digest of its files, not its path, is the identity."""

    name: str = MISSING
    path: str = silent()
    revision: str | None = silent(None)
    blocks: dict[str, list[str]] = silent(dict)  # `graftable` takes its list from here
    graftable: list[str] = MISSING
    attention: str = MISSING
    after: str | None = silent(None)  # a run; what it left is the identity
    sequence: list[str] = silent(list)
    take: Take = Take.graft


@dataclass
class FinetuneConfig:
    """How θ_ft is made from θ_pre (method: section 2)."""

    kind: Kind = MISSING
    pool: Pool | None = None
    norm: float | None = field(default=None, metadata={"low": 0, "high": None})
    optimizer: Optimizer = MISSING
    lr: float = between(0)
    head_lr: float | None = field(default=None, metadata={"low": 0, "high": None})
    steps: int = between(0)
    batch_size: int = between(1)
    weight_decay: float = between(0)
    clip: float = between(0)
    schedule: Schedule = MISSING
    evaluate_every: int = between(1)
    train: Train = Train.full
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
    examples: int | None = field(default=None, metadata={"low": 1, "high": None})
    score_every: int | None = field(default=None, metadata={"low": 1, "high": None})
    score_rows: int | None = field(default=None, metadata={"low": 1, "high": None})
    patience: int | None = field(default=None, metadata={"low": 1, "high": None})
    match: str | None = silent(None)
    start: float | None = field(default=None, metadata={"low": 0, "high": None})
    penalty: float | None = field(default=None, metadata={"low": 0, "high": None})
    points: int | None = field(default=None, metadata={"low": 1, "high": None})
    rounds: int | None = field(default=None, metadata={"low": 1, "high": None})
    per_example: bool | None = None
    layer: str | None = None
    module: str | None = None
    paths: list[str] = silent(list)  # the digests of the files are the identity
    by: Selector | None = silent(None)
    rule: Rule | None = None


@dataclass
class CompareConfig:
    """Models that stand beside the graft in metrics.json; none of them is a graft (section 3)."""

    temperature: bool = False
    wise: list[float] = field(default_factory=list, metadata={"low": 0, "high": 1})
    lottery: list[int] = field(default_factory=list, metadata={"low": 0, "high": None})
    inside: list[int] = field(default_factory=list, metadata={"low": 1, "high": None})


@dataclass
class ClaimConfig:
    """What a sweep is to show at its end; nothing of it can change a run."""

    name: str | None = None
    at: float | None = None  # the sparsity at which the paper's figure is tested
    small: list[str] = field(default_factory=list)  # OOD sets under a small shift: SET, or TASK/SET
    large: list[str] = field(default_factory=list)
    similar: list[list[str]] = field(default_factory=list)  # groups of tasks that are alike


@dataclass
class TrainerConfig:
    """Where and how the two Lightning modules run."""

    accelerator: str = MISSING
    devices: int = field(default=1, metadata={"low": 1, "high": None})
    strategy: Strategy = Strategy.ddp
    precision: str = MISSING
    evaluation_batch_size: int = between(1)
    compile: bool = False
    progress: bool | None = silent()


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
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    graft: GraftConfig = field(default_factory=GraftConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = silent(LoggerConfig)
    claim: ClaimConfig = silent(ClaimConfig)
    sparsity: float = between(0, 1)
    seed: int = between(0)
    shots: int | None = field(default=MISSING, metadata={"low": 1, "high": None})
    threads: int = between(1)
    store: str = silent()
    data_dir: str | None = silent()
    force: bool = silent()
    ood: dict[str, TaskConfig] = silent(dict)
    others: dict[str, TaskConfig] = silent(dict)  # of a mixture, or earlier in a sequence
