"""The configuration: what is refused and how, the task table, the identity, and the command."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ReadonlyConfigError

import runs
from runs import command
from skillgraft.config import choices, compose, identity, keys, messages, packages, validation
from skillgraft.config.keys import dotted_keys
from skillgraft.config.schema import RunConfig
from skillgraft.runtime.errors import InputError

LAUNCHERS = packages.CONF / "hydra" / "launcher"  # for sweeps alone: tests/test_launch.py
FILES = sorted(file for file in packages.CONF.rglob("*.yaml") if file.parent != LAUNCHERS)
TASKS = sorted(file.stem for file in (packages.CONF / "task").glob("[!_]*.yaml"))
BASES = sorted(file.stem for file in (packages.CONF / "task").glob("_*.yaml"))  # what tasks share
KEYS = [name for name, _ in dotted_keys()]
LEAVES = [name for name in KEYS if not any(other.startswith(f"{name}.") for other in KEYS)]


@functools.cache
def _composed(*overrides: str) -> RunConfig:
    return runs.composed(*overrides)


def composed(*overrides: str) -> RunConfig:
    """Return a configuration of one's own; each is composed once."""
    return copy.deepcopy(_composed(*overrides))


def refused(*overrides: str, folders: tuple[Path, ...] = (packages.CONF,)) -> str:
    """Return the line that the command would print for overrides that it must refuse."""

    def settle() -> None:
        cfg = composed(*overrides)
        validation.check(cfg)
        compose.expand(cfg, folders)

    with pytest.raises((InputError, *messages.COMPOSITION_ERRORS)) as error:
        settle()
    line = messages.explain(error.value)
    assert "\n" not in line
    return line


# ------------------------------------------------------------------------------- wrong keys


def misspelt(name: str) -> str:
    """Swap two letters of a key's last part: 'sparsity' becomes 'spasrity'."""
    *groups, leaf = name.split(".")
    if len(leaf) < 4:
        return ".".join([*groups, f"{leaf}e"])
    middle = next(i for i in range(len(leaf) // 2, len(leaf) - 1) if leaf[i] != leaf[i + 1])
    swapped = leaf[:middle] + leaf[middle + 1] + leaf[middle] + leaf[middle + 2 :]
    return ".".join([*groups, swapped])


@pytest.mark.parametrize("name", KEYS)
def test_every_key_misspelt(name: str) -> None:
    wrong = misspelt(name)
    assert wrong not in KEYS
    # only a sweep file has a claim
    sweep = ["embedded=calibration"] if name.startswith("claim.") else []
    line = refused(*sweep, f"{wrong}=1")
    assert f"'{wrong}'" in line
    assert f"Did you mean '{name}'?" in line


@pytest.mark.parametrize("key", ["foo", "finetune.foo", "task.hub.foo", "trainer.max_steps"])
@pytest.mark.parametrize("sign", ["+", "++"])
def test_no_key_can_be_added(sign: str, key: str) -> None:
    """An unknown key is an error even where Hydra would take it: it would change nothing."""
    assert f"'{key}'" in refused(f"{sign}{key}=1")


@pytest.mark.parametrize("key", ["seed", "task.metric", "finetune.lr"])
def test_no_key_can_be_removed(key: str) -> None:
    line = refused(f"~{key}")
    assert f"{key}" in line
    assert "Did you mean" not in line


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("task=sst3", "sst2"),
        ("task=toyfilm", "toy_film"),
        ("task=QNLI", "qnli"),
        ("model=roberta-base", "roberta_base"),
        ("model=bert", "bert_base"),
        ("finetune=promt", "prompt"),
        ("graft=lerned", "learned"),
        ("trainer=cpus", "cpu"),
        ("logger=wandb-offline", "wandb_offline"),
    ],
)
def test_unknown_options(override: str, nearest: str) -> None:
    line = refused(override)
    group, option = override.split("=")
    assert f"{group}/{option}" in line
    assert f"Did you mean '{nearest}'?" in line
    options = (file.stem for file in (packages.CONF / group).glob("[!_]*.yaml"))
    assert all(option in line for option in options)
    assert not any(base in line for base in BASES)


def test_a_name_like_none_suggests_nothing() -> None:
    assert "Did you mean" not in refused("task=zzzzzz")
    assert "Did you mean" not in refused("zzzzzz=1")


# ------------------------------------------------------------------------------- wrong values


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sparsity=-0.1", ["sparsity=-0.1", "from 0 to 1"]),
        ("sparsity=1.5", ["sparsity=1.5", "from 0 to 1"]),
        ("sparsity=nan", ["sparsity=nan", "from 0 to 1"]),
        ("sparsity=inf", ["sparsity=inf", "from 0 to 1"]),
        ("seed=-1", ["seed=-1", "at least 0"]),
        ("shots=0", ["shots=0", "at least 1"]),
        ("threads=0", ["threads=0", "at least 1"]),
        ("task.max_length=7", ["task.max_length=7", "at least 8"]),
        ("task.max_test_examples=0", ["task.max_test_examples=0", "at least 1"]),
        ("finetune.steps=-1", ["finetune.steps=-1", "at least 0"]),
        ("finetune.lr=-1e-3", ["finetune.lr=-0.001", "at least 0"]),
        ("finetune.lr=nan", ["finetune.lr=nan"]),
        ("finetune.lr=inf", ["finetune.lr=inf"]),
        ("finetune.head_lr=-1", ["finetune.head_lr=-1", "at least 0"]),
        ("finetune.feature_norm=-1", ["finetune.feature_norm=-1", "at least 0"]),
        ("finetune.batch_size=0", ["finetune.batch_size=0", "at least 1"]),
        ("finetune.weight_decay=-1", ["finetune.weight_decay=-1", "at least 0"]),
        ("finetune.gradient_clip_val=-1", ["finetune.gradient_clip_val=-1", "at least 0"]),
        ("finetune.evaluate_every=0", ["finetune.evaluate_every=0", "at least 1"]),
        ("graft.steps=-1", ["graft.steps=-1", "at least 0"]),
        ("graft.lr=-1", ["graft.lr=-1", "at least 0"]),
        ("graft.lr=inf", ["graft.lr=inf"]),
        ("graft.sigmoid_bias=nan", ["graft.sigmoid_bias=nan"]),
        ("graft.batch_size=0", ["graft.batch_size=0", "at least 1"]),
        ("graft.examples_per_step=0", ["graft.examples_per_step=0", "at least 1"]),
        ("graft.score_every=0", ["graft.score_every=0", "at least 1"]),
        ("graft.patience=0", ["graft.patience=0", "at least 1"]),
        ("graft.score_examples=0", ["graft.score_examples=0", "at least 1"]),
        ("trainer.evaluation_batch_size=0", ["trainer.evaluation_batch_size=0", "at least 1"]),
        ("trainer.devices=0", ["trainer.devices=0", "at least 1"]),
        ("trainer.accelerator=tpu", ["trainer.accelerator=tpu", "cpu or gpu"]),
        ("trainer.precision=33", ["trainer.precision=33", "32-true"]),
    ],
)
def test_out_of_range(override: str, expected: list[str]) -> None:
    key, _, value = override.partition("=")
    cfg = composed()
    OmegaConf.update(cfg, key, value)
    with pytest.raises(InputError) as error:
        validation.check(cfg)
    line = str(error.value)
    assert all(part in line for part in expected), line


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=abc", ["seed", "'abc'", "Integer"]),
        ("seed=1.5", ["seed", "1.5", "Integer"]),
        ("seed=null", ["seed", "not Optional"]),
        ("sparsity=small", ["sparsity", "'small'", "Float"]),
        ("sparsity=[1]", ["sparsity"]),
        ("force=maybe", ["force", "'maybe'", "bool"]),
        ("finetune.lr=fast", ["finetune.lr", "'fast'", "Float"]),
        ("task.labels=yes", ["task.labels"]),
        ("task.metric=f2", ["task.metric", "'f2'", "accuracy, f1, matthews"]),
        ("finetune.kind=lora", ["finetune.kind", "'lora'", "prompt, linear, autoregressive"]),
        ("finetune.pool=max", ["finetune.pool", "'max'", "first, mask, mean, last"]),
        ("finetune.optimizer=adam", ["finetune.optimizer", "'adam'", "sgd, adamw"]),
        ("finetune.lr_schedule=cosine", ["finetune.lr_schedule", "'cosine'", "linear, constant"]),
        ("graft.selector=best", ["graft.selector", "'best'", "learned, ", ", movement"]),
        ("logger.mode=on", ["logger.mode", "online, offline, none"]),
        ("task.source=web", ["task.source", "'web'", "hub, embedded, files"]),
        ("task.hub.columns=text", ["task.hub.columns"]),
    ],
)
def test_wrong_types(override: str, expected: list[str]) -> None:
    line = refused(override)
    assert all(part in line for part in expected), line


CUSTOM = (
    "task=custom",
    "task.name=mine",
    "task.train=a.csv",
    "task.test=a.csv",
    "task.template='*text* It was *mask*.'",
    "task.labels=[negative,positive]",
    "task.verbalizer=[terrible,great]",
)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["task=custom"], "task.template: no value; give one with task.template="),
        (["model=hub"], "model.path: no value; give one with model.path="),
        ([*CUSTOM, "task.labels=[one]"], "two or more different names"),
        ([*CUSTOM, "task.labels=[a,a]"], "two or more different names"),
        (["task=sst5", "task.metric=f1"], "task sst5: task.metric=f1 is for two labels, found 5"),
        ([*CUSTOM, "task.verbalizer=[great]"], "task.verbalizer has 1 words for 2 labels"),
        ([*CUSTOM, "task.verbalizer=[great,great]"], "two labels share a word"),
        (
            [*CUSTOM, "task.verbalizer=[true,terrible]"],
            "the word of 'negative' is True, not text: quote it",
        ),
        ([*CUSTOM, "task.verbalizer=[1,2]"], "the word of 'negative' is 1, not text: quote it"),
        ([*CUSTOM, "task.verbalizer=['','great']"], "the word of 'negative'"),
        ([*CUSTOM, "task.verbalizer=great"], "task.verbalizer"),
        ([*CUSTOM, "task.verbalizer=null"], "task.verbalizer"),
        (["+task.verbalizer.neutral=okay"], "task.verbalizer names"),
        (["finetune.kind=linear"], "finetune.pool and finetune.head_lr"),
        (["graft.size_from=other"], "graft.size_from=other"),
        (["graft.steps=null"], "graft.steps: graft.selector=learned needs a value"),
        (["task.ood=[nowhere]"], "task.ood: no task 'nowhere'"),
        (["task.ood=[toy_boook]"], "no task 'toy_boook'. Did you mean 'toy_book'?"),
        (["foo"], "'foo'"),
        (["seed==3"], "'seed==3'"),
    ],
)
def test_values_that_do_not_fit(overrides: list[str], expected: str) -> None:
    assert expected in refused(*overrides)


def test_the_command_line_reads_no_and_yes_as_text() -> None:
    """Hydra's grammar is not YAML's: there a bare No is a boolean."""
    task = composed(*CUSTOM, "task.verbalizer=[No,Yes]").task
    assert validation.verbalizer(task) == {"negative": "No", "positive": "Yes"}


@pytest.mark.parametrize(
    "override",
    ["seed=0", "shots=null", "sparsity=0", "sparsity=1", "finetune.steps=0", "graft.steps=0"],
)
def test_the_ends_of_ranges_are_allowed(override: str) -> None:
    validation.check(composed(override))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_passes(task: str) -> None:
    if task == "custom":
        return
    cfg = composed(f"task={task}")
    validation.check(cfg)
    expanded = compose.expand(cfg, [packages.CONF])
    assert list(expanded.ood_tasks) == list(cfg.task.ood)
    assert cfg.task.name == task
    read = compose.task_file(task, "task.ood", [packages.CONF])  # as a task that another names
    read.ood = cfg.task.ood
    assert compose.plain(read) == compose.plain(cfg.task)


NEEDED = {  # what an option leaves to the user
    "hub": ["model.path=x"],
    "layer": ["graft.layer=0"],
    "module": ["graft.module=query"],
    "file": ["graft.paths=[a]"],
    "multitask": ["finetune.tasks=[toy_film,toy_topic]"],
}


@pytest.mark.parametrize("group", ["model", "finetune", "graft", "trainer", "logger"])
def test_every_option_passes(group: str) -> None:
    for file in (packages.CONF / group).glob("*.yaml"):
        validation.check(composed(f"{group}={file.stem}", *NEEDED.get(file.stem, [])))


@dataclasses.dataclass
class Part:
    size: int = 3


@dataclasses.dataclass
class Schema:
    part: Part = dataclasses.field(default_factory=Part)
    parts: list[Part] = dataclasses.field(default_factory=list)


def test_schema_may_lie_in_any_module() -> None:
    """Not only in that of config: else keys would leave ids in silence."""
    assert [name for name, _ in dotted_keys(Schema)] == ["part", "part.size", "parts"]
    assert list(keys.unknown({"part": {"siz": 1}, "parts": []}, Schema)) == ["part.siz"]


def test_keys_are_the_whole_configuration() -> None:
    def walk(node: dict[str, Any], prefix: str = "") -> set[str]:
        names = {prefix + name for name in node}
        for name, value in node.items():
            free = ("task.verbalizer", "task.ood_labels", "model.blocks")
            if isinstance(value, dict) and prefix + name not in free:
                names |= walk(value, f"{prefix}{name}.")
        return names

    claim = {name for name in KEYS if name.startswith("claim.")}
    assert walk(compose.plain(composed())) == set(KEYS) - claim
    assert walk(compose.plain(composed("embedded=adamw"))) == set(KEYS)


def test_a_claim_stands_where_a_sweep_file_states_it(tmp_path: Path) -> None:
    assert composed().claim is None
    stated = composed("embedded=adamw", "claim.sparsity=0.5").claim
    assert stated is not None
    assert (stated.name, stated.sparsity) == ("adamw", 0.5)
    refused = command("--cfg", "job", "claim.sparsity=0.5", cwd=tmp_path)
    assert refused.stderr.startswith("skillgraft: claim: only a sweep file can state one")
    assert refused.returncode == 1


def test_what_the_program_fills_in_is_no_key_of_the_users() -> None:
    shown = compose.plain(composed())
    assert not {"ood", "others", "ood_tasks", "other_tasks"} & set(shown)
    assert "no key 'ood_tasks'" in refused("+ood_tasks.mine.name=mine")


def test_a_configuration_that_is_expanded_is_another() -> None:
    """The user's may be read-only, and is as it was; a copy that is changed is read-only itself."""
    mixture = ("finetune=multitask", "finetune.tasks=[toy_film,toy_topic]")
    for overrides in ((), mixture):
        cfg = composed(*overrides)
        before = compose.plain(cfg)
        OmegaConf.set_readonly(cast(DictConfig, cfg), True)
        expanded = compose.expand(cfg, [packages.CONF])
        other = compose.changed(expanded, {"seed": 7, "task.verbalizer": {"a": "b"}})
        assert compose.plain(cfg) == before
        assert compose.plain(expanded) | {"seed": 7} != compose.plain(other)
        assert (expanded.seed, other.seed, dict(other.task.verbalizer)) == (13, 7, {"a": "b"})
        with pytest.raises(ReadonlyConfigError):
            other.seed = 8
        with pytest.raises(ReadonlyConfigError):
            other.task.ood = []
    assert list(expanded.other_tasks) == ["toy_topic"]
    assert (list(cfg.task.ood) != [], list(expanded.task.ood)) == (True, [])


# ------------------------------------------------------------------------------- the task table

GREAT = {"negative": "terrible", "positive": "great"}
SINGLE, NLI, PAIR = "*text* It was *mask*.", "*a*? *mask*, *b*", "*a* *mask*, *b*"
THREE = {"entailment": "Yes", "neutral": "Maybe", "contradiction": "No"}
TWO = {"entailment": "Yes", "not_entailment": "No"}
FIVE = {
    "very negative": "terrible",
    "negative": "bad",
    "neutral": "okay",
    "positive": "good",
    "very positive": "great",
}
TOPICS = {
    "abbreviation": "Expression",
    "entity": "Entity",
    "description": "Description",
    "human": "Human",
    "location": "Location",
    "number": "Number",
}
NEWS = {"World": "World", "Sports": "Sports", "Business": "Business", "Sci/Tech": "Tech"}
TABLE = {
    **dict.fromkeys(
        ("sst2", "imdb", "mr", "cr", "mpqa", "yelp", "amazon"), (SINGLE, GREAT, "accuracy")
    ),
    "sst5": (SINGLE, FIVE, "accuracy"),
    "cola": (
        "*text* This is *mask*.",
        {"unacceptable": "incorrect", "acceptable": "correct"},
        "matthews",
    ),
    "subj": (
        "*text* This is *mask*.",
        {"subjective": "subjective", "objective": "objective"},
        "accuracy",
    ),
    "trec": ("*mask*: *text*", TOPICS, "accuracy"),
    "agnews": ("*mask*: *text*", NEWS, "accuracy"),
    "mrpc": (PAIR, {"not_equivalent": "No", "equivalent": "Yes"}, "f1"),
    "qqp": (PAIR, {"not_duplicate": "No", "duplicate": "Yes"}, "f1"),
    **dict.fromkeys(("mnli", "snli", "anli"), (NLI, THREE, "accuracy")),
    **dict.fromkeys(("qnli", "rte"), (NLI, TWO, "accuracy")),
}


@pytest.mark.parametrize("task", TABLE)
def test_the_table_of_tasks(task: str) -> None:
    """Method, section 6: word by word, and each a text."""
    template, words, metric = TABLE[task]
    found = composed(f"task={task}").task
    assert (found.template, validation.verbalizer(found)) == (template, words)
    assert list(found.labels) == list(words)
    assert found.metric.value == metric
    assert all(type(word) is str for word in validation.verbalizer(found).values())
    assert found.max_length == (256 if "*b*" in template else 128)


def test_the_table_is_complete() -> None:
    assert {task for task in TASKS if not task.startswith("toy_")} == {*TABLE, "custom"}


@pytest.mark.parametrize("task", [task for task in (*TASKS, *BASES) if task != "custom"])
def test_words_are_quoted(task: str) -> None:
    """In the file itself, before any schema turns a Yes into a 'True'."""
    told = yaml.safe_load((packages.CONF / "task" / f"{task}.yaml").read_text())
    assert all(isinstance(word, str) for word in told.get("verbalizer", {}).values())
    assert all(isinstance(label, str) for label in told.get("labels", []))


@pytest.mark.parametrize("base", BASES)
def test_bases_are_shared(base: str) -> None:
    """A base that fewer than two tasks stand on would be no base."""
    users = [task for task in TASKS if base in dict(compose.task_parts(task, [packages.CONF]))]
    assert len(users) > 1


@pytest.mark.parametrize("file", FILES, ids=[f"{f.parent.name}/{f.stem}" for f in FILES])
def test_the_first_line_is_a_command_that_composes(file: Path) -> None:
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# skillgraft")
    words = first.removeprefix("# skillgraft").split("   ")[0]
    overrides = [word.replace("FOLDER", "x") for word in shlex.split(words)]
    cfg = composed(*overrides)
    if file.parent != packages.CONF:  # and it is about this file, or about the one that tests it
        told = getattr(cfg, file.parent.name)
        own = OmegaConf.load(file)
        name = own.get("name") or own.get("kind") or own.get("selector") or own.get("mode")
        named = [told.get(key) for key in ("name", "kind", "selector", "mode")]
        named = [getattr(value, "value", value) for value in named]
        ood = list(told.get("ood") or [])
        if file.stem in BASES:
            assert file.stem in dict(compose.task_parts(told.name, [packages.CONF]))
            return
        by_option = f"{file.parent.name}={file.stem}" in overrides
        assert by_option or name in named or name in ood


def test_a_list_of_words_is_the_mapping() -> None:
    mapping = composed("task=mnli")
    listed, shuffled = composed("task=mnli"), composed("task=mnli")
    listed.task.verbalizer = ["Yes", "Maybe", "No"]
    shuffled.task.verbalizer = {"contradiction": "No", "entailment": "Yes", "neutral": "Maybe"}
    for cfg in (mapping, listed, shuffled):
        assert validation.verbalizer(cfg.task) == THREE
        assert list(validation.verbalizer(cfg.task)) == list(THREE)
        cfg.task.verbalizer = validation.verbalizer(cfg.task)  # as a run does
        assert identity.identity(cfg) == identity.identity(mapping)
    own = composed(*CUSTOM)
    assert validation.verbalizer(own.task) == GREAT


# ------------------------------------------------------------------------------- identity


def without_effect() -> list[str]:
    return [
        "store=elsewhere",
        "force=true",
        "data_dir=elsewhere",
        "logger=none",
        "logger.project=other",
        "logger.tags=[a]",
        "trainer.progress=true",
        "task.source=files",
        "task.train=a.csv",
        "task.validation=a.csv",
        "task.test=a.csv",
        "task.columns.text=review",
        "task.hub.path=a/b",
        "task.hub.labels=[a]",
        "task.ood=[]",
        "model.path=elsewhere",
        "model.revision=abc",
        "hydra.run.dir=elsewhere",
    ]


@pytest.mark.parametrize("override", without_effect())
def test_what_cannot_change_a_result_is_not_in_the_identity(override: str) -> None:
    assert identity.identity(composed(override)) == identity.identity(composed())


CHANGED = {
    "task.name": "other",
    "task.template": "'*text* *mask*'",
    "task.labels": "[a,b]",
    "task.verbalizer": "[bad,good]",
    "task.metric": "f1",
    "task.max_length": "99",
    "task.max_test_examples": "5",
    "task.ood_labels": "{a: b}",
    "model.name": "other",
    "model.graftable": "[x]",
    "model.attention": "eager",
    "finetune.kind": "linear",
    "finetune.pool": "first",
    "finetune.feature_norm": "3",
    "finetune.optimizer": "adamw",
    "finetune.lr": "0.5",
    "finetune.head_lr": "0.5",
    "finetune.steps": "7",
    "finetune.batch_size": "3",
    "finetune.weight_decay": "0.5",
    "finetune.gradient_clip_val": "0.5",
    "finetune.lr_schedule": "constant",
    "finetune.evaluate_every": "7",
    "graft.selector": "random",
    "graft.steps": "7",
    "graft.lr": "7",
    "graft.sigmoid_bias": "7",
    "graft.batch_size": "7",
    "graft.examples_per_step": "7",
    "graft.score_every": "7",
    "graft.score_examples": "7",
    "graft.patience": "7",
    "graft.init_score": "7",
    "graft.l1_penalty": "7",
    "graft.path_points": "7",
    "graft.greedy_rounds": "7",
    "graft.per_example": "true",
    "graft.layer": "7",
    "graft.module": "value",
    "graft.combine": "intersection",
    "finetune.trainable": "bias",
    "finetune.l1": "0.5",
    "finetune.rank": "7",
    "finetune.alpha": "7",
    "finetune.tasks": "[toy_film]",
    "continual.carry": "finetuned",
    "compare.temperature": "true",
    "compare.wise_ft_alphas": "[0.5]",
    "compare.lottery_steps": "[7]",
    "compare.inside_steps": "[7]",
    "trainer.accelerator": "gpu",
    "trainer.devices": "2",
    "trainer.strategy": "fsdp",
    "trainer.precision": "bf16-mixed",
    "trainer.evaluation_batch_size": "7",
    "trainer.compile": "true",
    "sparsity": "0.5",
    "seed": "0",
    "shots": "7",
    "threads": "7",
}


HEAD = ("finetune.pool", "finetune.feature_norm", "finetune.head_lr")  # a prompt never reads these
READERS: dict[str, list[str]] = {  # what reads a key that the default run does not
    **{key: ["finetune=linear"] for key in HEAD},
    **{key: ["finetune=lora"] for key in ("finetune.rank", "finetune.alpha")},
    **{key: ["graft=stitch_l1"] for key in ("graft.init_score", "graft.l1_penalty")},
    **{key: ["graft=attribution"] for key in ("graft.path_points", "graft.greedy_rounds")},
    "graft.per_example": ["graft=fisher"],
    "graft.layer": ["graft=layer", "graft.layer=0"],
    "graft.module": ["graft=module", "graft.module=query"],
    "graft.combine": ["graft=file", "graft.paths=[a]"],
    "continual.carry": ["continual.init_from=a"],
}


def changed_keys(name: str, *overrides: str) -> set[str]:
    """Return the keys of the identity that another value of `name` changes."""
    cfg = composed(*overrides)
    node, leaf = cfg, name.rpartition(".")[2]
    for part in name.split(".")[:-1]:
        node = node[part]
    node[leaf] = yaml.safe_load(CHANGED[name])
    changed, before = identity.identity(cfg), identity.identity(composed(*overrides))
    return {n for n in {*changed, *before} if changed.get(n) != before.get(n)}


@pytest.mark.parametrize("name", CHANGED)
def test_what_can_change_a_result_is_in_the_identity(name: str) -> None:
    found = changed_keys(name, *READERS.get(name, []))
    if name == "graft.selector":  # and with it go the options that only `learned` reads
        assert name in found
        found = {n for n in found if not n.startswith("graft.")} | {name}
    assert found == {name}


def test_the_patterns_of_another_kind_rename_no_run() -> None:
    """What `graftable` comes to is in the identity, not the lists that it is chosen from."""
    encoder = [r"(^|\.)encoder\.layer\.\d+\.", r"(^|\.)transformer\.layer\.\d+\."]
    for kind in ("prompt", "linear", "autoregressive"):
        named = identity.identity(composed(f"finetune={kind}"))
        assert (named["model.graftable"] == encoder) == (kind != "autoregressive")
        assert "model.blocks" not in named


@pytest.mark.parametrize("name", [*READERS, *(n for n in CHANGED if n.startswith("graft."))])
def test_what_is_never_read_is_not_in_the_identity(name: str) -> None:
    if name != "graft.selector":
        assert changed_keys(name, "graft=movement") == set()


def test_every_key_is_one_or_the_other() -> None:
    silent = {override.partition("=")[0] for override in without_effect()}
    hidden = [n for n, e in dotted_keys() if e.metadata.get("identity") is False]
    quiet = {name for name in LEAVES if any(name == h or name.startswith(f"{h}.") for h in hidden)}
    assert quiet | set(CHANGED) == set(LEAVES)
    assert not quiet & set(CHANGED)
    assert {name.partition(".")[0] for name in silent - {"hydra.run.dir"}} <= {
        name.partition(".")[0] for name in quiet
    }


def test_defaults_of_the_schema_are_left_out() -> None:
    """So that a key added later renames no run."""
    told = identity.identity(composed())
    for name, entry in dotted_keys():
        if entry.default is None:
            assert told.get(name, "unset") is not None
    for name in (
        "finetune.pool",
        "finetune.feature_norm",
        "task.max_test_examples",
        "task.ood_labels",
    ):
        assert name not in told
    assert "finetune.feature_norm" in identity.identity(composed("finetune=linear"))
    unset = identity.identity(composed("finetune=linear", "finetune.feature_norm=null"))
    assert "finetune.feature_norm" not in unset
    assert (
        identity.identity(composed("shots=null"))["shots"] is None
    )  # not a default: it was chosen


def test_a_new_key_with_its_default_renames_nothing(monkeypatch) -> None:
    before = identity.identity(composed())

    @dataclasses.dataclass
    class Longer(RunConfig):
        later: int = 0

    longer = OmegaConf.merge(OmegaConf.structured(Longer), compose.plain(composed()))
    real = keys.dotted_keys
    monkeypatch.setattr(
        keys, "dotted_keys", lambda *a, **k: real(Longer) if not a else real(*a, **k)
    )
    assert identity.identity(longer) == before
    longer.later = 1
    assert identity.identity(longer) == {**before, "later": 1}


def test_numbers_are_the_same_however_they_are_written() -> None:
    for one, two in (("sparsity=1e-3", "sparsity=0.001"), ("graft.lr=1e7", "graft.lr=10000000")):
        assert identity.identity(composed(one)) == identity.identity(composed(two))


# ------------------------------------------------------------------------------- the real command


def failed(tmp_path: Path, *arguments: str) -> str:
    """Return the one line that the command prints when it fails."""
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    [line] = (done.stderr + done.stdout).strip().splitlines()
    assert line.startswith("skillgraft: ")
    return line


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("sparsty=0.1", "no key 'sparsty' in the configuration. Did you mean 'sparsity'?"),
        ("task=sst3", "Did you mean 'sst2'?"),
        ("sparsity=1.5", "sparsity=1.5: expected a value from 0 to 1"),
        ("task=custom", "task.template"),
        ("finetune=5", "Config group override must be a string"),
        ("+embedded=calibration", "write embedded=calibration, without a plus"),
        ("embedded=calibratoin", "Options: adamw, "),  # and not _base, which they share
        ("sweep=mine", "no such file; give your folder: --config-dir FOLDER sweep=FILE"),
    ],
)
def test_errors_of_the_command(tmp_path: Path, argument: str, expected: str) -> None:
    assert expected in failed(tmp_path, argument)


OTHER = """# skillgraft --config-dir conf task=other
name: other
source: files
template: "*text* It was *mask*."
labels: [a, b]
verbalizer: [terrible, great]
metric: accuracy
max_length: 64
train: nowhere.jsonl
test: nowhere.jsonl
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's own configuration folder."""
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "other.yaml").write_text(OTHER)
    return tmp_path


def test_a_task_in_the_users_folder(own: Path) -> None:
    done = command("--config-dir", "conf", "task=other", "--cfg", "job", cwd=own)
    assert (done.returncode, done.stderr) == (0, "")
    told = yaml.safe_load(done.stdout)
    assert (told["task"]["name"], told["model"]["name"]) == ("other", "tiny")
    assert "nowhere.jsonl" in failed(own, "--config-dir", "conf", "task=other")
    assert "Did you mean 'other'?" in failed(own, "--config-dir", "conf", "task=othre")


@pytest.mark.parametrize(
    ("line", "instead", "expected"),
    [
        ("metric: accuracy", "metrik: accuracy", "metrik"),
        ("metric: accuracy", "metric: f3", "f3"),
        ("labels: [a, b]", "labels: [a, b", "other.yaml"),
        ("metric: accuracy", " metric: accuracy", "other.yaml"),
    ],
)
def test_faults_in_the_users_file(own: Path, line: str, instead: str, expected: str) -> None:
    file = own / "conf" / "task" / "other.yaml"
    file.write_text(OTHER.replace(line, instead))
    told = failed(own, "--config-dir", "conf", "task=other")
    assert expected in told
    assert "other" in told


def own_task(folder: Path, name: str, text: str) -> Path:
    """Write a task file of a user's, and return its configuration folder."""
    (folder / "task").mkdir(exist_ok=True)
    (folder / "task" / f"{name}.yaml").write_text(text)
    return folder


MINE = "defaults: [toy_film, {base}]\nname: mine\nmax_length: 32\n"


@pytest.mark.parametrize("base", ["_self_", "mine_words"])
def test_a_task_of_the_users_that_stands_on_another(tmp_path: Path, base: str) -> None:
    """As an OOD set and in a mixture it is what Hydra composes."""
    own_task(tmp_path, "mine_words", "verbalizer: {positive: nice}\nmax_length: 99\n")
    own_task(tmp_path, "mine", MINE.format(base=base))
    shown = command("--config-dir", str(tmp_path), "task=mine", "--cfg", "job", cwd=tmp_path)
    hydras = OmegaConf.create(yaml.safe_load(shown.stdout)["task"])
    cfg = compose.expand(composed("task.ood=[mine]"), [packages.CONF, tmp_path])
    found = compose.plain(cfg.ood_tasks["mine"])
    assert found == compose.plain(hydras) | {"ood": []}
    assert found["max_length"] == 32
    assert found["verbalizer"]["positive"] == ("great" if base == "_self_" else "nice")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("defaults: [toy_flim]", "mine.yaml: defaults: no task 'toy_flim'"),
        ("defaults: [mine]", "mine.yaml: defaults: a circle 'mine'"),
        ("defaults: [/model/tiny]", "/model/tiny: a task that is named in task.ood"),
        ("defaults: [{override /model: tiny}]", "only have names of files of its own folder"),
        ("[a, b]", "mine.yaml: expected keys with values"),
        ("metrik: f1", "metrik"),
    ],
)
def test_a_file_that_cannot_be_an_ood_task(tmp_path: Path, text: str, expected: str) -> None:
    own_task(tmp_path, "mine", text)
    with pytest.raises(InputError) as error:
        compose.expand(composed("task.ood=[mine]"), [packages.CONF, tmp_path])
    assert expected in str(error.value)
    assert "mine.yaml: " in str(error.value)


LOCAL = """\
# @package _global_
store: {folder}/kept
data_dir: {folder}/data
logger: {{entity: us}}
hydra: {{run: {{dir: "${{store}}/.jobs/mine"}}}}
"""


def local(folder: Path, text: str) -> Path:
    """Write local/default.yaml in a configuration folder, and return this."""
    (folder / "local").mkdir(parents=True)
    (folder / "local" / "default.yaml").write_text(text)
    return folder


def test_paths_of_a_machine(tmp_path: Path) -> None:
    """They are found in the user's folder, the command line is before them, and no id knows of them."""
    text = LOCAL.format(folder=tmp_path)
    own = local(tmp_path / "own", text)
    overrides = ("store=given", "embedded=calibration")
    shown = command("--config-dir", str(own), *overrides, "--cfg", "job", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    cfg = OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.create(shown.stdout))
    assert (cfg.store, cfg.data_dir) == ("given", f"{tmp_path}/data")
    assert (cfg.logger.entity, cfg.logger.mode) == ("us", choices.Mode.offline)
    assert identity.identity(cfg) == identity.identity(composed("embedded=calibration"))
    compose.check_local([packages.CONF, own])


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("seed: 7", "seed"),
        ("trainer: {progress: true, accelerator: gpu}", "trainer.accelerator"),
        ("hydra: {sweeper: {params: {seed: 1}}}", "hydra.sweeper.params.seed"),
        ("defaults: [{override /hydra/launcher: cores}, {override /trainer: gpu}]", "/trainer"),
    ],
)
def test_a_machine_cannot_make_another_run(tmp_path: Path, text: str, key: str) -> None:
    line = refused(folders=(packages.CONF, local(tmp_path, text)))
    assert f"{key}: only a machine's paths may stand there (store, data_dir" in line
    assert "local/default.yaml" in line


def test_git_keeps_out_the_paths_of_a_machine() -> None:
    top = packages.CONF.parent
    done = subprocess.run(["git", "check-ignore", "conf/local/default.yaml"], cwd=top, check=False)
    assert done.returncode == 0


def test_no_such_folder(tmp_path: Path) -> None:
    assert "nowhere" in failed(tmp_path, "--config-dir", "nowhere")


def test_help_says_what_there_is(tmp_path: Path) -> None:
    done = command("--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(task in done.stdout for task in TASKS)
    assert "skillgraft task=sst2" in done.stdout
    assert not list(tmp_path.iterdir())  # asking leaves nothing behind


def test_search_path_has_the_sweeps(tmp_path: Path) -> None:
    done = command("--info", "searchpath", cwd=tmp_path)
    assert done.returncode == 0
    assert str(packages.SWEEPS) in done.stdout
    assert str(packages.CONF) in done.stdout


def test_shown_configuration_is_the_composed_one(tmp_path: Path) -> None:
    done = command("--cfg", "job", "task=qnli", "seed=0", cwd=tmp_path)
    assert done.returncode == 0
    told = OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.create(done.stdout))
    assert compose.plain(told) == compose.plain(composed("task=qnli", "seed=0"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("skillgraft task=", {f"task={task}" for task in (*TASKS, *BASES)}),
        ("skillgraft seed=1 finet", {"finetune.", "finetune="}),
    ],
)
def test_tab_completion(tmp_path: Path, monkeypatch, line: str, expected: set[str]) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    done = command("-sc", "query=bash", cwd=tmp_path)
    assert done.returncode == 0
    assert set(done.stdout.split()) == expected


def test_help_into_a_closed_pipe(tmp_path: Path) -> None:
    """As `skillgraft --help | head`: no traceback."""
    read, write = os.pipe()
    os.close(read)
    program = Path(sys.executable).parent / "skillgraft"
    done = subprocess.run(
        [program, "--help"], stdout=write, stderr=subprocess.PIPE, cwd=tmp_path, check=False
    )
    os.close(write)
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["sparsty=1"]])
def test_nothing_heavy_is_imported_before_a_job(tmp_path: Path, arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['skillgraft', *{arguments}]\n"
        "from skillgraft.cli.skillgraft import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'pytorch_lightning', 'datasets', 'pandas', 'wandb',"
        " 'matplotlib', 'pyarrow'}\n"
        "print('heavy:', *sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "heavy:"
