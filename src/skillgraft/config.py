"""What can be chosen: the schema of the configuration, its ranges, and where the files lie.

`conf/` gives the values; a dataclass here gives names, types and ranges. A field whose metadata
says `identity=False` cannot change a result and stays out of a run's id.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.util
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any, cast, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError  # type: ignore[import-untyped]

from skillgraft import launch
from skillgraft.errors import InputError

PACKAGE = Path(str(resources.files("skillgraft"))).resolve()


def shipped(folder: str) -> Path:
    """Return a configuration folder: inside an installed wheel, or at the top of a checkout."""
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parents[1] / folder


# What Hydra raises before a job starts: a wrong key, value, group option or command line.
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException)

PRECISIONS = (
    "32-true",
    "bf16-mixed",
)  # parameters stay in fp32; fp16 would need a scaler in checkpoints

CONF = shipped("conf")
SWEEPS = shipped("multirun_sweeps")


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


class Train(StrEnum):
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


class Schedule(StrEnum):
    """How the learning rate of fine-tuning goes over the steps."""

    linear = "linear"
    constant = "constant"


class Strategy(StrEnum):
    """How fine-tuning uses several devices: a whole model on each, or a shard of it."""

    ddp = "ddp"
    fsdp = "fsdp"


class Selector(StrEnum):
    """How a region is chosen (method: section 3)."""

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
MASKED = ("steps", "lr", "batch_size", "examples", "score_every", "score_rows", "patience")
READ: dict[Selector, tuple[str, ...]] = {
    Selector.learned: (*MASKED, "sigmoid_bias"),
    Selector.stitch_l1: (*MASKED, "start", "penalty"),
    Selector.attribution: ("points", "rounds", "batch_size", "examples"),
    Selector.fisher: ("points", "per_example", "batch_size", "examples"),
    Selector.layer: ("layer",),
    Selector.module: ("module",),
    Selector.file: ("rule",),
}
TRAINED = (Selector.learned, Selector.stitch_l1)  # a size to start from; they find their own
UNSIZED = (Selector.bias, Selector.layer, Selector.module, Selector.file)  # `sparsity` is not read
# What local/default.yaml may have: where things are on a machine, and nothing of what is computed.
MACHINE = (
    "store", "data_dir", "model.path", "trainer.progress", "logger",
    "hydra.run", "hydra.sweep", "hydra.launcher",
)  # fmt: skip
MACHINE_GROUPS = ("override /logger", "override /hydra/launcher")
OPTIONAL = ("score_every", "score_rows", "patience", "per_example", "rounds")  # may be null


class Rule(StrEnum):
    """How stored grafts become one."""

    union = "union"
    intersection = "intersection"


class Take(StrEnum):
    """What a stage of continual learning starts from: the last one's graft, or its θ_ft."""

    graft = "graft"
    finetuned = "finetuned"


class Mode(StrEnum):
    """Where W&B sends its records."""

    online = "online"
    offline = "offline"
    none = "none"


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


def register() -> None:
    """Make the schema, the search path of the sweep files and what launchers ask known to Hydra."""
    ConfigStore.instance().store(name="schema", node=RunConfig)
    OmegaConf.register_new_resolver("skillgraft.sweeps", lambda: SWEEPS.as_uri(), replace=True)
    OmegaConf.register_new_resolver("skillgraft.jobs", launch.jobs, replace=True)
    OmegaConf.register_new_resolver("skillgraft.gpus", launch.gpus, replace=True)
    OmegaConf.register_new_resolver("skillgraft.cpus", launch.cpus, replace=True)


def limits(entry: dataclasses.Field) -> str:
    """Return a field's range in words, after a space."""
    low, high = entry.metadata.get("low"), entry.metadata.get("high")
    if low is None:
        return ""
    return f" at least {low}" if high is None else f" from {low} to {high}"


@functools.cache  # to resolve annotations is slow, and each run asks for all keys many times
def nested(schema: type) -> Mapping[str, type]:
    """Return the schema of every field that is one itself, wherever that is defined, by the field's name."""
    hints = get_type_hints(schema)
    return {
        name: hint
        for name, hint in hints.items()
        if isinstance(hint, type) and dataclasses.is_dataclass(hint)
    }


def keys(schema: type = RunConfig, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """Yield every dotted key of the schema with its field."""
    for entry in dataclasses.fields(schema):
        yield prefix + entry.name, entry
        if entry.name in nested(schema):
            yield from keys(nested(schema)[entry.name], f"{prefix}{entry.name}.")


def nearest(word: str, names: list[str]) -> str:
    """Return ' Did you mean X?' for the name most like `word`, or nothing."""

    def likeness(name: str) -> float:
        return difflib.SequenceMatcher(None, name.casefold(), word.casefold()).ratio()

    best = max(names, key=likeness, default="")  # of equals the first
    return f" Did you mean '{best}'?" if best and likeness(best) >= 0.6 else ""


def explain(error: BaseException) -> str:
    """Return one line for an error of composing the configuration, with the nearest right name."""
    cause = error
    while not isinstance(cause, OmegaConfBaseException):
        # where a file of a group is at fault, Hydra raises without naming its cause
        within = cause.__context__ if "raised while composing" in str(cause) else None
        if (deeper := cause.__cause__ or within) is None:
            break
        cause = deeper
    if isinstance(cause, MarkedYAMLError) and cause.problem_mark is not None:
        mark = cause.problem_mark
        return f"{mark.name}, line {mark.line + 1}: not YAML ({cause.problem})"
    first = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        known = [name for name, _ in keys()]
        file = re.match(r"In '[^']+': ", str(error))
        where = file[0] if file else ""
        if "not in" in first:
            key = cause.full_key
            if key in known:
                return f"{where}{key}: every key needs its value; it cannot be removed"
            if key == "sweep":  # an optional group of conf/run.yaml that only users have files in
                return "sweep: no such file; give your folder: --config-dir FOLDER sweep=FILE"
            return f"{where}no key '{key}' in the configuration.{nearest(key, known)}"
        return f"{where}{cause.full_key}: {first}"
    place = str(getattr(error, "missing_cfg_file", ""))
    asked = place.rsplit("/", 1)[-1]
    if line := launch.missing(place):
        return line
    if options := [name for name in getattr(error, "options", None) or () if name[0] != "_"]:
        # the names that begin with _ are what the files of a folder share
        first = first.partition(". Options:")[0]
        return f"{first}. Options: {', '.join(options)}.{nearest(asked, options)}"
    if match := re.match(r"Multiple values for (\S+)\. .*'override \S+: (\S+)'", first):
        group, option = match.groups()
        return (
            f"{group} has its place already: write {group}={option}, without a plus "
            f"(in a file's defaults: override /{group}: {option})"
        )
    if match := re.search(r"Could not override '([^']+)'", str(error)):
        return f"{first}.{nearest(match[1], [name for name, _ in keys()])}"
    return first


def unknown(node: Any, schema: type = RunConfig, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key that is not in the schema: Hydra takes +KEY=VALUE without asking."""
    known = {entry.name for entry in dataclasses.fields(schema)}
    for name in node:
        if name not in known:
            yield f"{prefix}{name}"
        elif name in nested(schema):
            yield from unknown(node[name], nested(schema)[name], f"{prefix}{name}.")


def check(cfg: RunConfig) -> None:
    """Raise InputError for the first value that is missing, out of range or does not fit another."""
    for key in unknown(cfg):
        raise InputError(
            f"no key '{key}' in the configuration.{nearest(key, [name for name, _ in keys()])}"
        )
    for name, entry in keys():
        node: Any = cast(DictConfig, cfg)
        for part in name.split("."):
            if OmegaConf.is_missing(node, part):
                raise InputError(f"{name}: no value; give one with {name}=…")
            node = node[part]
        if isinstance(node, float) and not math.isfinite(node):
            raise InputError(f"{name}={node}: expected a finite value{limits(entry)}")
        low, high = entry.metadata.get("low"), entry.metadata.get("high")
        for value in node if OmegaConf.is_list(node) else [node]:
            if low is None or value is None or low <= value <= (high or float("inf")):
                continue
            raise InputError(f"{name}={value}: expected a value{limits(entry)}")
    if not cfg.store.strip():
        raise InputError("store: expected a folder, found nothing")
    for key, name in (("task.name", cfg.task.name), ("model.name", cfg.model.name)):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name):
            raise InputError(
                f"{key}={name}: it names a folder; expected letters, digits and any of _ . + -"
            )
    check_task(cfg.task)
    if cfg.trainer.accelerator not in ("cpu", "gpu"):
        raise InputError(f"trainer.accelerator={cfg.trainer.accelerator}: expected cpu or gpu")
    if cfg.trainer.precision not in PRECISIONS:
        raise InputError(
            f"trainer.precision={cfg.trainer.precision}: expected one of {', '.join(PRECISIONS)}"
        )
    if cfg.trainer.compile and (cfg.trainer.devices > 1 or cfg.trainer.strategy is Strategy.fsdp):
        raise InputError("trainer.compile=true: on one device only, and not with trainer=fsdp")
    check_finetune(cfg)
    check_graft(cfg.graft)
    check_sequence(cfg)


def check_sequence(cfg: RunConfig) -> None:
    """Raise InputError where a stage of continual learning does not fit its sequence."""
    sequence = list(cfg.model.sequence)
    if sequence and (cfg.task.name not in sequence or len(set(sequence)) != len(sequence)):
        raise InputError(
            f"model.sequence={sequence}: expected different tasks, task.name={cfg.task.name} "
            "among them"
        )
    if (sequence or cfg.model.after is not None) and cfg.finetune.kind is Kind.linear:
        key = "model.sequence" if sequence else "model.after"
        raise InputError(f"{key}: tasks do not share a linear head; use a prompt")


def check_finetune(cfg: RunConfig) -> None:
    """Raise InputError where the values of a fine-tuning do not fit together."""
    options = cfg.finetune
    if options.kind is Kind.linear and (options.pool is None or options.head_lr is None):
        raise InputError("finetune.pool and finetune.head_lr: finetune.kind=linear needs both")
    if options.train is Train.lora and (options.rank is None or options.alpha is None):
        raise InputError("finetune.rank and finetune.alpha: finetune.train=lora needs both")
    if options.l1 and options.train is Train.lora:
        raise InputError("finetune.l1: not for finetune.train=lora, whose movement is not sparse")
    if options.tasks is None:
        raise InputError("finetune.tasks: no value; give the tasks with finetune.tasks=[…]")
    tasks = list(options.tasks)
    if tasks and (cfg.task.name not in tasks or len(set(tasks)) != len(tasks)):
        raise InputError(
            f"finetune.tasks={tasks}: expected different tasks, task.name={cfg.task.name} among them"
        )
    if tasks and options.kind is Kind.linear:
        raise InputError("finetune.tasks: tasks do not share a linear head; use a prompt")


def check_graft(graft: GraftConfig) -> None:
    """Raise InputError where the selector lacks a value, or has one that it cannot follow."""
    selector = graft.selector
    for name in READ.get(selector, ()):
        if graft[name] is None and name not in OPTIONAL:  # type: ignore[index]
            raise InputError(f"graft.{name}: graft.selector={selector.value} needs a value")
    matched = f"graft.match={graft.match}: the {selector.value} selector"
    if graft.match not in (None, selector.value) and selector in TRAINED:
        raise InputError(f"{matched} finds its own size")
    if graft.match not in (None, selector.value) and selector in UNSIZED:
        raise InputError(f"{matched} has no size")
    if selector is Selector.file and not graft.paths:
        raise InputError("graft.paths: graft.selector=file needs the files of grafts, or runs")


def check_task(task: TaskConfig) -> None:
    """Raise InputError where labels, verbalizer and metric of a task do not fit together."""
    labels, where = list(task.labels), f"task {task.name}"
    if len(set(labels)) != len(labels) or len(labels) < 2:
        raise InputError(f"{where}: task.labels={labels}: expected two or more different names")
    if task.metric is Metric.f1 and len(labels) != 2:
        raise InputError(f"{where}: task.metric=f1 is for two labels, found {len(labels)}")
    words = verbalizer(task)
    for label, word in words.items():
        if not isinstance(word, str) or not word.strip():
            raise InputError(
                f"{where}: task.verbalizer: the word of '{label}' is {word!r}, not text: quote it"
            )
    if len(set(words.values())) != len(words):
        raise InputError(f"{where}: task.verbalizer={words}: two labels share a word")


def verbalizer(task: TaskConfig) -> dict[str, str]:
    """Return the word of each label, in the labels' order; a list of words goes with the labels."""
    labels, words = list(task.labels), task.verbalizer
    if OmegaConf.is_config(words):
        words = OmegaConf.to_container(words)
    if isinstance(words, list):
        if len(words) != len(labels):
            raise InputError(
                f"task {task.name}: task.verbalizer has {len(words)} words for {len(labels)} labels"
            )
        return dict(zip(labels, words, strict=True))
    if not isinstance(words, Mapping) or set(words) != set(labels):
        found = sorted(map(str, words)) if isinstance(words, Mapping) else words
        raise InputError(f"task {task.name}: task.verbalizer names {found}, task.labels {labels}")
    return {label: words[label] for label in labels}


def expand(cfg: RunConfig, folders: list[Path]) -> None:
    """Fill `cfg.ood` and `cfg.others` with the task files that are named, found as Hydra finds groups."""
    check_local(folders)
    for node in (cfg.ood, cfg.others):
        OmegaConf.set_struct(cast(DictConfig, node), False)  # Hydra locks the configuration
    if cfg.finetune.tasks:
        cfg.task.ood = []  # a mixture is measured on its tasks
    for name in (name for name in cfg.task.ood if name not in cfg.ood):
        cfg.ood[name] = task_file(name, "task.ood", folders)
    for name in (
        name for name in cfg.finetune.tasks or () if name not in (cfg.task.name, *cfg.others)
    ):
        cfg.others[name] = task_file(name, "finetune.tasks", folders)
        cfg.others[name].test_rows = cfg.task.test_rows


def check_local(folders: Sequence[Path]) -> None:
    """Raise InputError where local/default.yaml has more than a machine's paths: it would rename runs."""
    files = (folder / "local" / "default.yaml" for folder in folders)
    if (file := next((file for file in files if file.is_file()), None)) is None:
        return
    content = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(file)))
    chosen = [
        next(iter(base)) if isinstance(base, dict) else base
        for base in content.pop("defaults", None) or []
    ]
    found = [base for base in chosen if base not in ("_self_", *MACHINE_GROUPS)]
    found += [
        key
        for key in dotted(content)
        if not any(key == name or key.startswith(f"{name}.") for name in MACHINE)
    ]
    for key in found:
        raise InputError(
            f"{file}: {key}: only a machine's paths may stand there ({', '.join(MACHINE)})"
        )


def dotted(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of all values of a nested mapping."""
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def task_file(name: str, key: str, folders: list[Path]) -> TaskConfig:
    """Return the task of a configuration file of the group `task`, without its own OOD sets."""
    found = in_group(name, folders)
    if found is None:
        known = {f.stem for folder in folders for f in (folder / "task").glob("[!_]*.yaml")}
        raise InputError(f"{key}: no task '{name}'.{nearest(name, sorted(known))}")
    try:
        parts = [content for _, content in task_parts(name, folders)]
        task = OmegaConf.merge(OmegaConf.structured(TaskConfig), *parts)
    except OmegaConfBaseException as error:
        raise InputError(f"{found}: {explain(error)}") from error
    task.ood = []
    return cast(TaskConfig, task)


def in_group(name: str, folders: Sequence[Path]) -> Path | None:
    """Return the file of a task: as Hydra searches, that of the first folder which has it."""
    files = (folder / "task" / f"{name}.yaml" for folder in folders)
    return next((file for file in files if file.is_file()), None)


def task_parts(
    name: str, folders: Sequence[Path], above: tuple[str, ...] = ()
) -> Iterator[tuple[str, DictConfig]]:
    """Yield the names and contents of a task's file and its bases, in the order in which they are merged.

    Hydra composes the task of a run, but only that one. Of a defaults list this knows what a task
    needs: names of files of the group `task`, and `_self_`, last where it is not named. Raises
    InputError for anything else.
    """
    file = in_group(name, folders)
    if file is None or name in above:
        user = in_group(above[-1], folders) if above else "task"
        raise InputError(f"{user}: defaults: {'a circle' if file else 'no task'} '{name}'")
    content = OmegaConf.load(file)
    if not isinstance(content, DictConfig):
        raise InputError(f"{file}: expected keys with values")
    bases = content.pop("defaults", None) or []
    for base in bases if "_self_" in bases else [*bases, "_self_"]:
        if base == "_self_":
            yield name, content
        elif isinstance(base, str) and re.fullmatch(r"[\w.+-]+", base):
            yield from task_parts(base, folders, (*above, name))
        else:
            raise InputError(
                f"{file}: defaults: {base}: a task that is named in task.ood or finetune.tasks may "
                "only have names of files of its own folder there, and _self_"
            )


def plain(cfg: Any) -> dict[str, Any]:
    """Return a resolved configuration as plain containers, enums by their value."""
    container = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    return cast(dict[str, Any], container)


def identity(cfg: RunConfig) -> dict[str, Any]:
    """Return dotted key → value of all that can change the result and is not the default.

    A value that equals the schema's default is left out, so that a key added later, whose default
    means "as before", renames no run.
    """
    values, everything = {}, plain(cfg)
    groups = {name.rpartition(".")[0] for name, _ in keys()}  # their keys come themselves
    hidden = [name for name, entry in keys() if entry.metadata.get("identity") is False]
    for name, entry in keys():
        if name in groups or any(name == h or name.startswith(h + ".") for h in hidden):
            continue
        value: Any = everything
        for part in name.split("."):
            value = value[part]
        default = (
            entry.default_factory()
            if entry.default_factory is not dataclasses.MISSING
            else entry.default
        )
        if value != default:
            values[name] = value
    unread = idle(cfg)
    return {name: value for name, value in values.items() if name not in unread}


def idle(cfg: RunConfig) -> set[str]:
    """Return the keys that the selector, or the kind of fine-tuning, never reads."""
    read = {"graft.selector", *(f"graft.{name}" for name in READ.get(cfg.graft.selector, ()))}
    unread = {name for name, _ in keys() if name.startswith("graft.") and name not in read}
    if cfg.graft.selector in UNSIZED:
        unread.add("sparsity")
    if cfg.finetune.kind is not Kind.linear:
        unread |= {"finetune.pool", "finetune.norm", "finetune.head_lr"}
    if cfg.finetune.train is not Train.lora:
        unread |= {"finetune.rank", "finetune.alpha"}
    if cfg.model.after is None:  # also at the first stage of a sequence
        unread.add("model.take")
    return unread


def described(cfg: RunConfig) -> str:
    """Return the selector with its sparsity, or with what it takes instead, for names of runs."""
    graft = cfg.graft
    if graft.selector not in UNSIZED:
        return f"{graft.selector.value}-s{cfg.sparsity:g}"
    part = {Selector.layer: graft.layer, Selector.module: graft.module}.get(graft.selector)
    return graft.selector.value + (f"-{part}".replace(" ", "_") if part else "")


def package_path(path: str, key: str, hint: str = "") -> Path:
    """Return the folder of `package:NAME/INNER` without importing the package."""
    name, _, inner = path.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):  # of the part before a dot; an empty name
        spec = None
    if spec is None or spec.origin is None:
        raise InputError(f"{key}: the package {name} is not installed.{hint}")
    return Path(spec.origin).parent / inner
