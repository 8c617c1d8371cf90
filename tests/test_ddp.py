"""One model over two processes, whole or sharded: as in one, and no process left."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from runs import TINY, command, composed
from skillgraft.config.choices import LRSchedule, Optimizer, Strategy
from skillgraft.core.best_mask import initial_scores
from skillgraft.core.relaxed_graft import RelaxedGraft
from skillgraft.models import checkpoint_files, pretrained
from skillgraft.models.classifier import Classifier
from skillgraft.runtime import files
from skillgraft.runtime.errors import InputError
from skillgraft.store import checksums
from skillgraft.tasks.batches import Batch
from skillgraft.training import distributed
from skillgraft.training.batches import Batches
from skillgraft.training.checkpoints import Progress
from skillgraft.training.fine_tuning import finetune
from skillgraft.training.mask_batches import MaskBatches
from skillgraft.training.mask_training import learn_mask
from skillgraft.training.resumable import log_nothing
from test_training import Tiny, config, course, examples

# A gradient is summed in another order, so its last bits differ: after these few steps weights have
# been up to 8e-8 apart, and scores up to 4e-6 of the way that they have gone.
WEIGHTS = {"rtol": 1e-5, "atol": 1e-6}
SCORES = {"rtol": 1e-4, "atol": 1e-4}


def loss(net: nn.Module, batch: Batch) -> Tensor:
    weight = batch.get("weight", torch.tensor(1.0))
    return nn.functional.cross_entropy(net(batch), batch["labels"]) * weight


# ------------------------------------------------------------------------------ what a rank is dealt


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 9), world=st.integers(2, 4))
def test_the_mean_over_ranks_is_the_mean_over_rows(rows: int, world: int) -> None:
    """Also where ranks have different numbers of rows, or none."""
    tiny = Tiny().eval()
    (whole,) = Batches([course(examples(rows))], 0, rows, 3, 0, 1)
    parts = [
        next(iter(Batches([course(examples(rows))], 0, rows, 3, 0, 1, rank, world)))
        for rank in range(world)
    ]
    assert all(part["input_ids"].shape[1] == whole["input_ids"].shape[1] for part in parts)
    mean = torch.stack([loss(tiny, part) for part in parts]).mean()
    torch.testing.assert_close(mean, loss(tiny, whole))


def test_words_of_another_task_are_every_rank_s() -> None:
    whole = {"labels": torch.arange(3), "input_ids": torch.arange(3), "words": torch.tensor([7, 8])}
    part = distributed.share_of_batch(whole, 1, 2)
    assert part["input_ids"].tolist() == part["labels"].tolist() == [1]
    assert part["words"].tolist() == [7, 8]
    assert part["weight"].item() == pytest.approx(2 / 3)


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 12), size=st.integers(1, 4), world=st.integers(2, 4))
def test_a_mask_step_deals_whole_batches(rows: int, size: int, world: int) -> None:
    """The mean over ranks of each one's mean is the mean of the batch means."""
    tiny, data = Tiny().eval(), examples(rows)
    whole = list(MaskBatches(data, 0, size, rows, 3, 0, 1))
    parts = [MaskBatches(data, 0, size, rows, 3, 0, 1, rank, world) for rank in range(world)]
    assert {len(part) for part in parts} == {-(-len(whole) // world)}
    assert all(len(list(part)) == len(part) for part in parts)
    means = [torch.stack([loss(tiny, batch) for batch in part]).mean() for part in parts]
    expected = torch.stack([loss(tiny, batch) for batch in whole]).mean()
    torch.testing.assert_close(torch.stack(means).mean(), expected)


# ---------------------------------------------------------------------------- one and two processes


def trained(
    folder: Path,
    devices: int,
    dropout: float = 0.0,
    strategy: Strategy = Strategy.ddp,
    only: dict[str, Tensor] | None = None,
    kind: type[Tiny] = Tiny,
    **options: object,
) -> tuple[dict[str, Tensor], Progress]:
    """Fine-tune by batches of three rows, and one of a single row each epoch."""
    folder.mkdir(exist_ok=True)
    cfg = config(**{"steps": 12, "evaluate_every": 6, "batch_size": 3} | options)
    cfg.trainer.devices, cfg.trainer.strategy = devices, strategy
    tiny, data, seen = kind(), examples(22), []
    tiny.drop.p = dropout  # of which each rank draws its own
    progress = finetune(tiny, cfg, [course(data[:13], data[13:])], 0, folder, seen.append, only)
    assert seen == progress.history  # each row once, in this process
    assert not (folder / distributed.FOLDER).exists()
    return {name: t.clone() for name, t in tiny.trained().items()}, progress


@pytest.mark.parametrize("kind", list(Optimizer))
def test_fine_tuning_on_two_processes(tmp_path: Path, kind: Optimizer) -> None:
    (one, of_one), (two, of_two) = (trained(tmp_path / str(n), n, optimizer=kind) for n in (1, 2))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, **WEIGHTS)
    assert of_one.best_step == of_two.best_step
    for a, b in zip(of_one.history, of_two.history, strict=True):
        assert b == pytest.approx(a, abs=1e-5)


class Spare(Tiny):
    """With a parameter that the loss does not reach, as a pooler that is not asked."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.ones(3))
        self.graftable["spare"] = self.spare


def test_a_parameter_that_the_loss_does_not_reach(tmp_path: Path) -> None:
    one, two = (trained(tmp_path / str(n), n, kind=Spare)[0] for n in (1, 2))
    assert one["spare"].tolist() == two["spare"].tolist() == [1, 1, 1]
    torch.testing.assert_close(two["layer.weight"], one["layer.weight"], **WEIGHTS)


@pytest.mark.parametrize("devices", [2, 3])
def test_several_processes_go_on_with_the_same_bits(tmp_path: Path, devices: int) -> None:
    """AdamW's moments and the losses since the last row come back; dropout is on.

    Of three ranks' gradients the order in which they are summed depends on where they lie.
    """
    options = {"dropout": 0.3, "evaluate_every": 3, "lr_schedule": LRSchedule.constant}
    whole, _ = trained(tmp_path / "whole", devices, **options)
    trained(tmp_path / "broken", devices, steps=6, **options)
    (tmp_path / "broken" / distributed.FOLDER).mkdir()  # as after a kill
    broken, _ = trained(tmp_path / "broken", devices, **options)
    assert all(torch.equal(broken[name], tensor) for name, tensor in whole.items())
    alone, _ = trained(tmp_path / "alone", 1, **options)
    assert not torch.equal(alone["layer.weight"], whole["layer.weight"])


def test_a_sharded_fine_tuning(tmp_path: Path) -> None:
    """As in one process, and broken off and taken up: the clipped norm is that of all shards together,

    AdamW's moments are gathered and dealt out again, and the l1 term and entries that are held fast
    find their shards. The head has two rows for two ranks, the bias six entries, one of them held.
    """
    only = {"layer.weight": torch.arange(36).view(6, 6) % 5 > 0, "layer.bias": torch.arange(6) > 0}
    options = {
        "lr_schedule": LRSchedule.constant,
        "only": only,
        "l1": 0.02,
        "gradient_clip_val": 0.05,
    }
    one, of_one = trained(tmp_path / "one", 1, **options)
    trained(tmp_path / "two", 2, strategy=Strategy.fsdp, steps=6, **options)
    two, of_two = trained(tmp_path / "two", 2, strategy=Strategy.fsdp, **options)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, **WEIGHTS)
    assert of_two.history[-1] == pytest.approx(of_one.history[-1], abs=1e-5)
    start = Tiny().trained()
    for name, mask in only.items():
        assert torch.equal(two[name][~mask], start[name][~mask])
        assert (two[name][mask] != start[name][mask]).any()
    unclipped, _ = trained(tmp_path / "unclipped", 1, **options | {"gradient_clip_val": 0.0})
    assert (unclipped["layer.weight"] - one["layer.weight"]).abs().max() > 1e-3


@pytest.fixture
def classifier() -> Classifier:
    """The embedded model under a prompt, without dropout."""
    cfg = composed()
    folder = checkpoint_files.locate(cfg.model)
    loaded = pretrained.load_model(cfg, folder, pretrained.load_tokenizer(folder))
    for module in loaded.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return loaded


def test_the_units_are_the_transformer_blocks(classifier: Classifier) -> None:
    """By the names of what can be grafted; what is sharded is gathered to the bit, also what is tied."""
    before = {n: p.detach().clone() for n, p in classifier.graftable.items()}
    (batch,) = Batches([course(examples(3))], 0, 3, 3, 0, 1)
    expected = classifier(batch)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        distributed.shard(classifier, init_device_mesh("cpu", (1,)))
        units = [name for name, unit in classifier.named_modules() if isinstance(unit, FSDPModule)]
        assert units == ["", *(f"model.bert.encoder.layer.{n}" for n in range(4))]
        assert all(isinstance(parameter, DTensor) for parameter in classifier.parameters())
        found = distributed.gathered(classifier.graftable, keep=True)
        assert list(found) == list(before)
        assert all(torch.equal(found[name], tensor) for name, tensor in before.items())
        assert distributed.gathered(classifier.graftable, keep=False) == {}
        torch.testing.assert_close(classifier(batch), expected)
    finally:
        torch.distributed.destroy_process_group()


def test_a_model_sharded_over_two_processes(tmp_path: Path, classifier: Classifier) -> None:
    """The embedded model itself: blocks, a head whose matrix is the words', SGD with the norm clipped."""
    cfg = composed("finetune.steps=3", "finetune.evaluate_every=3", "finetune.batch_size=3")
    cfg.trainer.progress = False
    start = {name: tensor.clone() for name, tensor in classifier.trained().items()}
    data, found = examples(8), []
    for devices, strategy in ((1, Strategy.ddp), (2, Strategy.fsdp)):
        cfg.trainer.devices, cfg.trainer.strategy = devices, strategy
        classifier.restore(start)
        folder = tmp_path / strategy
        folder.mkdir()
        finetune(classifier, cfg, [course(data[:6], data[6:])], 0, folder, log_nothing)
        found.append({name: tensor.clone() for name, tensor in classifier.trained().items()})
    one, two = found
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, **WEIGHTS)
    assert (
        max((one[n] - start[n]).abs().max().item() for n in one) > 1e-3
    )  # far above the tolerance


def test_bad_input_of_a_rank_is_one_line(tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(InputError, match=r"^fine-tuning diverged by step 10: lower finetune\.lr$"):
        trained(
            tmp_path / "f",
            2,
            optimizer=Optimizer.sgd,
            lr=1e30,
            gradient_clip_val=0.0,
            evaluate_every=12,
        )
    assert set(multiprocessing.active_children()) == before
    assert not (tmp_path / "f" / distributed.FOLDER).exists()


def masked(
    folder: Path, devices: int, selector: str
) -> tuple[Tensor, list[dict[str, float]], Tensor]:
    """Learn a mask by three batches a step."""
    folder.mkdir()
    cfg = config()
    cfg.trainer.devices, cfg.graft.selector, cfg.graft.lr = devices, selector, 3e4
    tiny, data = Tiny(), examples(22)
    random = torch.Generator().manual_seed(1)
    finetuned = {
        n: p.data + torch.randn(p.shape, generator=random) for n, p in tiny.graftable.items()
    }
    scores = initial_scores(42, 3)
    relaxed = RelaxedGraft(tiny.graftable, finetuned, torch.arange(0, 42, 5), scores, 10.0)
    try:
        chosen, history = learn_mask(
            tiny, relaxed, cfg, data[:14], data[14:], 0, folder, log_nothing
        )
    finally:
        relaxed.close()
    return chosen, history, scores


@pytest.mark.parametrize("selector", ["learned", "stitch_l1"])
def test_mask_training_on_two_processes(tmp_path: Path, selector: str) -> None:
    one, two = (masked(tmp_path / str(n), n, selector) for n in (1, 2))
    assert one[0].tolist() == two[0].tolist()
    torch.testing.assert_close(two[2], one[2], **SCORES)
    assert (one[2] - initial_scores(42, 3)).abs().max() > 1  # far more than the tolerance
    for a, b in zip(one[1], two[1], strict=True):
        assert b == pytest.approx(a, abs=1e-5)


# ---------------------------------------------------------------------------------------- commands

FEW = (*TINY, "trainer=ddp", "graft.steps=2", "graft.examples_per_step=8", "graft.batch_size=3")


def whole(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.name.startswith("toy_film-")]


def test_a_sweep_of_two_jobs(tmp_path: Path) -> None:
    """In one process: no rank runs the command line again, and none says anything."""
    done = command(
        "-m", f"store={tmp_path}", *FEW, "logger=wandb_offline", "seed=1,2", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if " INFO " not in line]
    folders = whole(tmp_path)
    assert sorted(files.read_json(folder / "status.json")["seed"] for folder in folders) == [1, 2]
    assert len(list(tmp_path.glob(".jobs/*/*/run.json"))) == 2
    for folder in folders:
        assert checksums.verify(folder) == []
        (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
        told = file.read_bytes()
        for key in ("finetune/loss", "finetune/validation/accuracy", "mask/loss", "mask/objective"):
            assert key.encode() in told


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300  # a busy machine takes long to import
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alone(group: int) -> bool:
    """Return whether no process of a group is left, but for ones that have ended."""
    listed = subprocess.run(
        ["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in listed.stdout.splitlines()]
    return not [row for row in rows if row[0] == str(group) and not row[1].startswith("Z")]


@pytest.mark.parametrize(
    ("number", "strategy"),
    [(signal.SIGTERM, "ddp"), (signal.SIGINT, "fsdp"), (signal.SIGKILL, "ddp")],
)
def test_a_stopped_run_leaves_no_process(
    tmp_path: Path, number: signal.Signals, strategy: str
) -> None:
    """Its ranks end with it, whether or not it could end them.

    Where it could, all end after the same step, with a checkpoint though no evaluation was near. A
    terminal or a scheduler sends such a signal to every process.
    """
    program = str(Path(sys.executable).parent / "skillgraft")
    rare = ("finetune.steps=100000", "finetune.evaluate_every=100000")
    two = (f"trainer={strategy}", "trainer.accelerator=cpu", *rare)
    arguments = [program, f"store={tmp_path}", *FEW, *two]
    with (tmp_path / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            arguments, stdout=stderr, stderr=stderr, start_new_session=True, cwd=tmp_path
        )
    stopped = number != signal.SIGKILL
    try:
        run = psutil.Process(process.pid)  # below it: the server, what counts resources, two ranks
        until(lambda: process.poll() is not None or len(run.children(recursive=True)) > 3)
        assert process.poll() is None, (tmp_path / "stderr").read_text()
        if stopped:
            os.killpg(process.pid, number)
        else:
            process.kill()
        assert process.wait(300) == (128 + number if stopped else -number)
        until(lambda: alone(process.pid))
    finally:
        process.kill()
    said = (tmp_path / "stderr").read_text()
    cause = "Ctrl-C" if number == signal.SIGINT else number.name
    assert (f"interrupted ({cause}); run the same command to resume" in said) == stopped
    assert "Traceback" not in said
    assert bool(list(tmp_path.glob(f".partial/*/{distributed.FOLDER}"))) != stopped
    checkpoints = list(tmp_path.glob(".partial/finetuned-*/resume.safetensors"))
    assert len(checkpoints) == stopped
    for path in checkpoints:
        with safe_open(path, framework="pt") as file:
            progress = Progress(**json.loads(file.metadata()["progress"]))
        assert progress.step < 100000
        assert not any("finetune/validation/accuracy" in row for row in progress.history)
