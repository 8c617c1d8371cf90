"""The schema of the configuration: names, types and ranges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from skillgraft.config import selectors
from skillgraft.config.choices import (
    Carry,
    Kind,
    LRSchedule,
    Metric,
    Mode,
    Optimizer,
    Pool,
    Source,
    Strategy,
    Trainable,
)
from skillgraft.config.fields import between, not_identity
from skillgraft.config.selector_options import SelectorOptions


@dataclass
class Columns:
    """Names of the columns in a task's files, or in its hub data set."""

    text: str = "text"
    """The column of the text, in a task on single texts."""
    text_a: str = "text_a"
    """The column of the first text, in a task on pairs."""
    text_b: str = "text_b"
    """The column of the second text, in a task on pairs."""
    label: str = "label"
    """The column of the label."""


@dataclass
class Hub:
    """A data set of the Hugging Face hub; the rows' digest, not its name, is the identity."""

    path: str | None = None
    """The data set's id on the Hugging Face Hub; null: no data set is known, and `data_dir` must
    have the task."""
    name: str | None = None
    """The data set's configuration, as GLUE's `sst2`."""
    revision: str | None = None
    """A branch, tag or commit of the data set; null: the newest."""
    train: str = "train"
    """The split of the training examples."""
    validation: str | None = None
    """The split of the validation examples; null: they are drawn from the training examples left
    over."""
    test: str = "test"
    """The split of the test examples."""
    labels: list[str] = field(default_factory=list)
    """What integer labels mean, in order, where the data set does not say it."""
    columns: Columns = field(default_factory=Columns)
    """The data set's column names."""


@dataclass
class TaskConfig:
    """A classification task: table 6 of the method."""

    name: str = MISSING
    """The task's name in run ids, tables and W&B."""
    template: str = MISSING
    """The prompt: `*text*`, or `*a*` and `*b*` for pairs, and one `*mask*` where the model
    answers."""
    labels: list[str] = MISSING
    """The names of the classes, in order; two or more."""
    verbalizer: Any = MISSING
    """One word of the vocabulary per label: a list in the labels' order, or a mapping from label
    to word."""
    metric: Metric = MISSING
    """The task's own metric, which tables call the score; f1 is that of the last of two labels."""
    max_length: int = between(8)
    """Tokens of an example at most; longer texts are cut."""
    source: Source = not_identity()
    """Where examples come from: the embedded generator, the Hub (or `data_dir`), or files."""
    columns: Columns = not_identity(Columns)
    """The column names of your files."""
    hub: Hub = not_identity(Hub)
    """The data set on the Hub, for `task.source=hub`."""
    train: str | None = not_identity(None)
    """The file of training examples, for `task.source=files`."""
    validation: str | None = not_identity(None)
    """The file of validation examples; null: they are drawn from the training examples left
    over."""
    test: str | None = not_identity(None)
    """The file of test examples, for `task.source=files`."""
    max_test_examples: int | None = field(default=None, metadata={"low": 1, "high": None})
    """Evaluate on the first so many examples of each test set; null: on all. A note in the run
    says where their classes are not a chance draw of all."""
    ood: list[str] = not_identity(list)
    """Other tasks whose test examples are measured too: out of distribution."""
    ood_labels: dict[str, str] = field(default_factory=dict)
    """Another task's label → this task's label; `a|b` adds the probabilities of two labels."""


@dataclass
class ModelConfig:
    """A pre-trained model; the digest of its files, not its path, is the identity."""

    name: str = MISSING
    """The model's name in run ids, tables and W&B."""
    path: str = not_identity()
    """A Hub id, a folder, a GGUF file, or `package:NAME/FOLDER` inside an installed Python
    package."""
    revision: str | None = not_identity(None)
    """A branch, tag or commit of the model on the Hub; null: the newest."""
    blocks: dict[str, list[str]] = not_identity(dict)  # `graftable` takes its list from here
    """For each kind of fine-tuning, regular expressions of the names of the transformer blocks'
    parameters."""
    graftable: list[str] = MISSING
    """Regular expressions of the graftable parameters' names; fine-tuning trains these, and the
    region lies in them."""
    attention: str = MISSING
    """The attention implementation of transformers: `sdpa` or `eager`; the two differ in the
    last bits."""


@dataclass
class ContinualConfig:
    """A sequence of tasks, and what each stage starts from (Panigrahi et al., 2023)."""

    tasks: list[str] = not_identity(list)
    """Tasks of continual learning, in order; a run starts from the complete run of the task
    before its own."""
    init_from: str | None = not_identity(None)  # a run; what it left is the identity
    """A run, by folder or id, whose model this run starts from in place of the pre-trained one."""
    carry: Carry = Carry.graft
    """What a run takes over from the task before: its graft, or its fine-tuned model (plain
    sequential fine-tuning)."""


@dataclass
class FinetuneConfig:
    """How θ_ft is made from θ_pre: by a prompt (Gao et al., 2021), a linear head, or the next token."""

    kind: Kind = MISSING
    """How the model predicts: the LM head at a mask (prompt), a new head (linear), or the LM
    head after the last token (autoregressive)."""
    pool: Pool | None = None
    """The hidden state that a linear head reads: the first token's, the mask's, the mean, or the
    last token's."""
    feature_norm: float | None = field(default=None, metadata={"low": 0, "high": None})
    """The length that a linear head's features are scaled to; null: as they come."""
    optimizer: Optimizer = MISSING
    """The optimizer."""
    lr: float = between(0)
    """The learning rate."""
    head_lr: float | None = field(default=None, metadata={"low": 0, "high": None})
    """The learning rate of a new linear head."""
    steps: int = between(0)
    """Optimizer steps."""
    batch_size: int = between(1)
    """Training examples per step."""
    weight_decay: float = between(0)
    """Weight decay, on matrices only."""
    gradient_clip_val: float = between(0)
    """Clip the gradient's norm to this value; 0: no clipping."""
    lr_schedule: LRSchedule = MISSING
    """The learning rate falls linearly to 0, or stays constant."""
    evaluate_every: int = between(1)
    """Steps between two validations; each writes a checkpoint, and the best model is kept."""
    trainable: Trainable = Trainable.full
    """Which of the graftable parameters are trained: all, the biases, or low-rank updates."""
    l1: float = field(default=0.0, metadata={"low": 0, "high": None})
    """Strength of the proximal ℓ1 step, which moves each parameter by lr · l1 towards its pre-
    trained value."""
    rank: int | None = field(default=None, metadata={"low": 1, "high": None})
    """The rank of low-rank updates, for `finetune=lora`."""
    alpha: int | None = field(default=None, metadata={"low": 1, "high": None})
    """Low-rank updates are scaled by alpha ÷ rank."""
    tasks: list[str] | None = field(default_factory=list)  # null: a mixture that lacks its tasks
    """Several tasks to fine-tune one model on; the runs of these tasks share the fine-tuning."""


@dataclass
class CompareConfig:
    """Models that stand beside the graft in metrics.json; none of them is a graft."""

    temperature: bool = False
    """Add the fine-tuned model and the graft, each with one temperature fitted on validation
    examples."""
    wise_ft_alphas: list[float] = field(default_factory=list, metadata={"low": 0, "high": 1})
    """Add the interpolated models θ_pre + α (θ_ft − θ_pre), WiSE-FT, for these α."""
    lottery_steps: list[int] = field(default_factory=list, metadata={"low": 0, "high": None})
    """Add lottery tickets: all but the region set to 0, the region trained from θ_pre for so
    many steps."""
    inside_steps: list[int] = field(default_factory=list, metadata={"low": 1, "high": None})
    """Add the graft after so many further steps of fine-tuning inside its region."""


@dataclass
class ClaimConfig:
    """What a sweep is to show at its end; nothing of it can change a run."""

    name: str | None = None
    """The claim of the paper that a sweep judges at its end; null: none."""
    sparsity: float | None = None
    """The sparsity at which the paper's figure is tested; null: all of the sweep."""
    small_shift: list[str] = field(default_factory=list)
    """OOD sets under a small shift: `SET`, or `TASK/SET`."""
    large_shift: list[str] = field(default_factory=list)
    """OOD sets under a large shift: `SET`, or `TASK/SET`."""
    similar: list[list[str]] = field(default_factory=list)
    """Groups of similar tasks: `[[a,b],[c,d,e]]`."""


@dataclass
class TrainerConfig:
    """Where and how the two Lightning modules run."""

    accelerator: str = MISSING
    """`cpu` or `gpu`."""
    devices: int = field(default=1, metadata={"low": 1, "high": None})
    """Processes, one device each, that train one model together; part of a run's identity."""
    strategy: Strategy = Strategy.ddp
    """A whole model on each device (ddp), or parameters and optimizer state sharded over them
    (fsdp)."""
    precision: str = MISSING
    """`32-true`, or `bf16-mixed`, which trains in half precision and keeps parameters in fp32."""
    evaluation_batch_size: int = between(1)
    """Examples per batch where no gradient is needed."""
    compile: bool = False
    """Use `torch.compile` on the base model; results differ in the last bits."""
    progress: bool | None = not_identity()
    """Show progress bars; null: on a terminal only."""


@dataclass
class LoggerConfig:
    """What Weights & Biases is told."""

    mode: Mode = MISSING
    """Where W&B's records go: online, into a folder that `grafts sync` sends later, or nowhere."""
    project: str = MISSING
    """The W&B project."""
    entity: str | None = None
    """The W&B user or team; null: the default of the account."""
    tags: list[str] = field(default_factory=list)
    """W&B tags of every run."""


@dataclass
class RunConfig:
    """One run: a task, a model, a fine-tuning, a region and a seed.

    `sparsity` is the share of the graftable parameters that the region *keeps*.
    """

    task: TaskConfig = field(default_factory=TaskConfig)
    """The classification task."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The pre-trained model."""
    continual: ContinualConfig = field(default_factory=ContinualConfig)
    """Continual learning."""
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    """How θ_ft is made from θ_pre."""
    graft: SelectorOptions = field(default_factory=lambda: selectors.union()())
    """How the region is chosen: the options of a selector."""
    compare: CompareConfig = field(default_factory=CompareConfig)
    """Models to compare the graft with."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Where and how training runs."""
    logger: LoggerConfig = not_identity(LoggerConfig)
    """What Weights & Biases is told."""
    claim: ClaimConfig | None = not_identity(None)
    """What a sweep judges at its end; the sweep files have one."""
    sparsity: float = between(0, 1)
    """The share of the graftable parameters that the region keeps; for a learned mask, of the
    base region that training starts from."""
    seed: int = between(0)
    """The seed of data, model and mask; their own seeds derive from it."""
    shots: int | None = field(default=MISSING, metadata={"low": 1, "high": None})
    """Training examples per class, and as many for validation; null: all."""
    threads: int = between(1)
    """Threads of torch per process; part of a run's identity, and never adapted to the machine."""
    store: str = not_identity()
    """The folder of the runs, relative to the working directory."""
    data_dir: str | None = not_identity()
    """A folder with `<task>/train.jsonl` and so on; a task that it lacks comes from the Hub."""
    force: bool = not_identity()
    """Make a run again that is complete."""


@dataclass
class ResolvedConfig(RunConfig):
    """A run's configuration with all that the program fills in: what a run stores as config.yaml.

    The tasks that the user's configuration names stand in it as their files define them.
    """

    ood_tasks: dict[str, TaskConfig] = not_identity(dict)
    """The tasks of `task.ood`."""
    other_tasks: dict[str, TaskConfig] = not_identity(dict)
    """The other tasks of a mixture, or the earlier ones of a sequence."""
