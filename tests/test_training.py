"""Schedules of batches, the optimiser, and a fine-tuning that goes on where it was killed."""

from __future__ import annotations

import json
import signal
import tracemalloc
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from skillgraft.config.choices import LRSchedule, Metric, Optimizer, Strategy, Trainable
from skillgraft.core.best_mask import initial_scores
from skillgraft.core.relaxed_graft import RelaxedGraft
from skillgraft.runtime import signals
from skillgraft.runtime.errors import InputError
from skillgraft.runtime.seeds import derive
from skillgraft.tasks.batches import Batch
from skillgraft.tasks.encoder import Encoded
from skillgraft.training import mask_training, resumable
from skillgraft.training.batches import Batches, TrainingTask
from skillgraft.training.checkpoints import Progress, write_tensors
from skillgraft.training.fine_tuning import FineTuning, finetune
from skillgraft.training.mask_batches import MaskBatches
from skillgraft.training.mask_training import learn_mask
from skillgraft.training.optimizer import lr_factor, make_optimizer


def examples(n: int) -> list[Encoded]:
    """Examples that are told apart by their first token; their lengths differ."""
    return [Encoded([10 + i] + [1] * (i % 4), [0] * (1 + i % 4), 0, i % 2) for i in range(n)]


def course(train: list[Encoded], validation: list[Encoded] = ()) -> TrainingTask:
    return TrainingTask("toy", Metric.accuracy, train, validation)


def rows(batch: Batch) -> list[int]:
    return (batch["input_ids"][:, 0] - 10).tolist()


def order(batches: Batches | MaskBatches) -> list[list[int]]:
    return [rows(batch) for batch in batches]


# ---------------------------------------------------------------------------- fine-tuning rows


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 20),
    size=st.integers(1, 25),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 2**40),
)
def test_every_epoch_covers_each_example_once(n: int, size: int, epochs: int, seed: int) -> None:
    per_epoch = -(-n // size)
    found = order(Batches([course(examples(n))], 0, size, seed, 0, epochs * per_epoch))
    assert len(found) == epochs * per_epoch
    for epoch in range(epochs):
        part = found[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(i for group in part for i in group) == list(range(n))
        assert [len(group) for group in part[:-1]] == [size] * (per_epoch - 1)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 12),
    size=st.integers(1, 13),
    start=st.integers(0, 30),
    steps=st.integers(0, 30),
    seed=st.integers(0, 5),
)
def test_a_resumed_schedule_is_the_tail_of_the_unbroken_one(n, size, start, steps, seed) -> None:
    whole = order(Batches([course(examples(n))], 0, size, seed, 0, steps))
    rest = Batches([course(examples(n))], 0, size, seed, start, steps)
    assert len(whole) == steps
    assert order(rest) == whole[start:]
    assert len(rest) == len(whole[start:])
    assert order(rest) == whole[start:]  # and again


def test_the_schedule_differs_by_seed_and_by_epoch() -> None:
    found = [order(Batches([course(examples(16))], 0, 4, seed, 0, 8)) for seed in (0, 1, 0)]
    assert found[0] == found[2] != found[1]
    assert found[0][:4] != found[0][4:]


def test_a_batch_is_padded_to_its_longest() -> None:
    (batch,) = Batches([course(examples(4))], 7, 4, 0, 0, 1)
    assert batch["input_ids"].shape == (4, 4)
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 7).all()
    lengths = dict(zip(rows(batch), batch["attention_mask"].sum(1).tolist(), strict=True))
    assert lengths == {0: 1, 1: 2, 2: 3, 3: 4}
    assert batch["labels"].tolist() == [i % 2 for i in rows(batch)]


# ----------------------------------------------------------------------------- mask-training rows


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 15),
    size=st.integers(1, 6),
    limit=st.integers(1, 20),
    start=st.integers(0, 6),
    more=st.integers(0, 6),
    seed=st.integers(0, 5),
)
def test_a_mask_step_covers_its_rows_once_and_resumes(n, size, limit, start, more, seed) -> None:
    steps = start + more
    schedule = MaskBatches(examples(n), 0, size, limit, seed, 0, steps)
    whole, used = order(schedule), min(limit, n)
    assert schedule.per_step == -(-used // size)
    assert len(schedule) == len(whole) == steps * schedule.per_step
    for step in range(steps):
        part = whole[step * schedule.per_step : (step + 1) * schedule.per_step]
        seen = Counter(i for group in part for i in group)
        assert len(seen) == used
        assert set(seen.values()) == {1}
        assert [len(group) for group in part[:-1]] == [size] * (schedule.per_step - 1)
    rest = MaskBatches(examples(n), 0, size, limit, seed, start, steps)
    assert order(rest) == whole[start * schedule.per_step :]
    assert len(rest) == more * schedule.per_step


def test_mask_rows_differ_by_seed_step_and_purpose() -> None:
    found = [order(MaskBatches(examples(16), 0, 4, 16, seed, 0, 2)) for seed in (0, 1, 0)]
    assert found[0] == found[2] != found[1]
    assert found[0][:4] != found[0][4:]
    assert found[0][:4] != order(Batches([course(examples(16))], 0, 4, 0, 0, 4))


def test_all_rows_are_used_in_the_long_run() -> None:
    seen = {i for group in order(MaskBatches(examples(12), 0, 2, 4, 0, 0, 30)) for i in group}
    assert seen == set(range(12))


# --------------------------------------------------------------------------------------- seeds


def test_derived_seeds() -> None:
    names = [("data",), ("data", 0), ("data", 1), ("data", "epoch", 1), ("mask",), ()]
    seeds = [derive(seed, *name) for seed in (0, 1, 13) for name in names]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive(13, "data", "epoch", 2) == derive(13, "data", "epoch", 2)
    torch.Generator().manual_seed(max(seeds))


# ----------------------------------------------------------------------------------- optimiser


@pytest.mark.parametrize(
    ("schedule", "step", "steps", "expected"),
    [
        (LRSchedule.constant, 0, 10, 1.0),
        (LRSchedule.constant, 9, 10, 1.0),
        (LRSchedule.constant, 10, 10, 1.0),
        (LRSchedule.linear, 0, 10, 1.0),
        (LRSchedule.linear, 1, 10, 0.9),
        (LRSchedule.linear, 5, 10, 0.5),
        (LRSchedule.linear, 9, 10, 0.1),
        (LRSchedule.linear, 10, 10, 0.0),
        (LRSchedule.linear, 0, 0, 1.0),
    ],
)
def test_factor(schedule: LRSchedule, step: int, steps: int, expected: float) -> None:
    assert lr_factor(schedule, step, steps) == pytest.approx(expected)


def named(**shapes: tuple[int, ...]) -> dict[str, nn.Parameter]:
    return {name.replace("__", "."): nn.Parameter(torch.ones(s)) for name, s in shapes.items()}


@pytest.mark.parametrize("kind", list(Optimizer))
@pytest.mark.parametrize("head_lr", [None, 1.0, 0.1])
def test_optimiser_groups(kind: Optimizer, head_lr: float | None) -> None:
    cfg = SimpleNamespace(lr=0.1, head_lr=head_lr, weight_decay=0.01, optimizer=kind)
    parameters = named(
        model__layer__weight=(2, 3),
        model__layer__bias=(2,),
        model__norm__weight=(3,),
        model__head__weight=(2, 2),  # a model's own: not the new head
        head__weight=(2, 3),
        head__bias=(2,),
    )
    optimizer = make_optimizer(cfg, parameters)
    assert type(optimizer) is (torch.optim.AdamW if kind is Optimizer.adamw else torch.optim.SGD)
    seen = {}
    for group in optimizer.param_groups:
        assert group["peak"] == group["lr"]
        for p in group["params"]:
            name = next(n for n, q in parameters.items() if q is p)
            assert name not in seen
            seen[name] = (group["lr"], group["weight_decay"])
            assert not group.get("momentum")
    top = 0.1 if head_lr is None else head_lr
    assert seen == {
        "model.layer.weight": (0.1, 0.01),
        "model.layer.bias": (0.1, 0.0),
        "model.norm.weight": (0.1, 0.0),
        "model.head.weight": (0.1, 0.01),
        "head.weight": (top, 0.01),
        "head.bias": (top, 0.0),
    }


def test_a_head_learning_rate_of_zero_is_one() -> None:
    cfg = SimpleNamespace(lr=0.1, head_lr=0.0, weight_decay=0.0, optimizer=Optimizer.sgd)
    optimizer = make_optimizer(cfg, named(head__weight=(2, 2), model__weight=(2, 2)))
    assert sorted(group["lr"] for group in optimizer.param_groups) == [0.0, 0.1]


# ----------------------------------------------------------------------------------- the files


def test_write_tensors_is_whole_and_leaves_nothing_partial(tmp_path: Path) -> None:
    path, progress = tmp_path / "state.safetensors", Progress(3, 2, 0.75, [{"a/b": 1.5}])
    tensors = {
        "strided": torch.arange(6.0).view(2, 3).t(),
        "scalar": torch.tensor(4.0),
        "bf16": torch.ones(3, dtype=torch.bfloat16),
        "parameter": nn.Parameter(torch.zeros(2)),
    }
    (tmp_path / "state.safetensors.partial").mkdir()
    (tmp_path / "state.safetensors.partial" / "left.by.a.kill").touch()
    for _ in range(2):  # and over an older one
        write_tensors(path, tensors, vars(progress))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    (plain := tmp_path / "plain").touch()
    assert path.stat().st_mode == plain.stat().st_mode
    back = load_file(path)
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    with safe_open(path, framework="pt") as file:
        assert Progress(**json.loads(file.metadata()["progress"])) == progress


def test_write_tensors_makes_no_copy(tmp_path: Path) -> None:
    tensors = {"scores": torch.zeros(1 << 20)}
    tracemalloc.start()  # of Python's own memory; torch's is not in it
    try:
        write_tensors(tmp_path / "state.safetensors", tensors, {})
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    written = (tmp_path / "state.safetensors").read_bytes()
    assert written == save(tensors, {"progress": "{}"})


# ------------------------------------------------------------------------------ a whole training


class Tiny(nn.Module):
    """The interface that training needs of a classifier, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embed, self.drop = nn.Embedding(60, 6), nn.Dropout(0.3)
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 2)
        self.embed.requires_grad_(False)
        self.graftable = {"layer.weight": self.layer.weight, "layer.bias": self.layer.bias}

    def forward(self, batch: Batch) -> Tensor:
        hidden = self.embed(batch["input_ids"]) * batch["attention_mask"].unsqueeze(-1)
        return self.head(self.drop(self.layer(hidden.mean(1)).tanh()))

    def trained(self) -> dict[str, Tensor]:
        head = {f"head.{n}": p.data for n, p in self.head.named_parameters()}
        return {n: p.data for n, p in self.graftable.items()} | head

    def restore(self, tensors: dict[str, Tensor]) -> None:
        for name, target in self.trained().items():
            target.copy_(tensors[name])


def config(**finetune: Any) -> SimpleNamespace:
    options = {
        "optimizer": Optimizer.adamw,
        "lr": 0.05,
        "head_lr": 0.1,
        "weight_decay": 0.01,
        "lr_schedule": LRSchedule.linear,
        "steps": 24,
        "batch_size": 4,
        "gradient_clip_val": 1.0,
        "evaluate_every": 6,
        "trainable": Trainable.full,
        "l1": 0.0,
    }
    trainer = {
        "accelerator": "cpu",
        "devices": 1,
        "strategy": Strategy.ddp,
        "precision": "32-true",
        "progress": False,
        "evaluation_batch_size": 8,
    }
    graft = {"steps": 6, "lr": 1e6, "batch_size": 4, "examples_per_step": 10, "score_every": 2}
    graft["patience"] = None
    return SimpleNamespace(
        finetune=SimpleNamespace(**options | finetune),
        trainer=SimpleNamespace(**trainer),
        graft=SimpleNamespace(**graft, score_examples=8, selector="learned"),
        task=SimpleNamespace(metric=Metric.accuracy),
        seed=13,
    )


class Killed(BaseException):
    """The machine went down."""


def killing(key: str, step: int | None):
    """A log that fails at the first row of `key` at `step` or later."""
    seen = []

    def log(row: dict[str, Any]) -> None:
        seen.append(dict(row))
        if step is not None and key in row and row[key] >= step:
            raise Killed

    return log, seen


def train(folder: Path, cfg: SimpleNamespace, kill: int | None = None):
    folder.mkdir(exist_ok=True)
    tiny, (log, seen) = Tiny(), killing("finetune/step", kill)
    data = examples(22)
    progress = finetune(tiny, cfg, [course(data[:14], data[14:])], 0, folder, log)
    return progress, {n: t.clone() for n, t in tiny.trained().items()}, seen, tiny


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize(
    ("kind", "every"),  # losses are averaged over 10 steps
    [(Optimizer.sgd, 10), (Optimizer.adamw, 5)],
)
def test_a_killed_fine_tuning_ends_with_the_same_bits(
    tmp_path: Path, kind: Optimizer, every: int
) -> None:
    cfg = config(optimizer=kind, evaluate_every=every)
    whole = train(tmp_path / "whole", cfg)
    assert whole[0].step == 24
    assert whole[0].best_step in (every, 2 * every, 3 * every, 4 * every, 24)
    for kill in (1, every + 1, 24):
        folder = tmp_path / f"killed{kill}"
        with pytest.raises(Killed):
            train(folder, cfg, kill)
        torch.rand(3)  # whatever else has happened to the global generator
        again = train(folder, cfg)
        assert equal(again[1], whole[1]), kill
        assert again[0] == whole[0], kill
        assert again[2] == whole[2], kill  # the replayed curve is the unbroken one
        last = [load_file(f / "resume.safetensors") for f in (folder, tmp_path / "whole")]
        assert equal(*last), kill


@pytest.mark.parametrize(("hook", "step"), [("on_fit_start", 0), ("on_train_end", 24)])
def test_a_signal_that_lightning_does_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str, step: int
) -> None:
    """It comes before Lightning listens, or after it has looked for the last time."""
    kept = getattr(FineTuning, hook)

    def asked(self: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        kept(self)

    monkeypatch.setattr(FineTuning, hook, asked)
    with pytest.raises(signals.Interrupted), signals.watching():
        train(tmp_path / "f", config())
    with safe_open(tmp_path / "f" / "resume.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["progress"])["step"] == step


def test_a_finished_fine_tuning_is_taken_as_it_is(tmp_path: Path) -> None:
    first = train(tmp_path / "f", config())
    files = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "f").iterdir()}
    second = train(tmp_path / "f", config())
    assert equal(first[1], second[1])
    assert first[0] == second[0]
    assert first[2] == second[2]
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "f").iterdir()} == files


def test_fine_tuning_trains_what_it_says_and_keeps_the_best(tmp_path: Path) -> None:
    progress, trained, seen, tiny = train(tmp_path / "f", config(evaluate_every=6))
    start = Tiny()
    assert torch.equal(tiny.embed.weight, start.embed.weight)
    assert all(not torch.equal(t, start.trained()[n]) for n, t in trained.items())
    assert not any(module.training for module in tiny.modules())
    assert equal(trained, {n: load_file(tmp_path / "f" / "best.safetensors")[n] for n in trained})
    key = "finetune/validation/accuracy"
    scores = {row["finetune/step"]: row[key] for row in seen if key in row}
    assert list(scores) == [6, 12, 18, 24]
    assert progress.best_score == max(scores.values())
    assert progress.best_step == min(s for s, v in scores.items() if v == max(scores.values()))
    assert progress.history == seen
    assert [r["finetune/step"] for r in seen if "finetune/loss" in r] == [10, 20, 24]
    assert not list((tmp_path / "f").glob("*.partial"))
    assert all(parameter.grad is None for parameter in tiny.parameters())


def test_every_batch_gets_to_its_device_in_one_way(tmp_path: Path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(resumable, "to_device", lambda batch, device: seen.append(device) or batch)
    train(tmp_path / "f", config(steps=3))
    assert seen == [torch.device("cpu")] * 3


def test_no_steps_leave_the_pretrained_model(tmp_path: Path) -> None:
    progress, trained, seen, _ = train(tmp_path / "f", config(steps=0))
    assert equal(trained, Tiny().trained())
    assert (progress.step, seen) == (0, [])


def test_fine_tuning_differs_by_seed_and_repeats(tmp_path: Path) -> None:
    cfg, other = config(steps=4), config(steps=4)
    other.seed = 14
    runs = [train(tmp_path / str(i), c)[1] for i, c in enumerate((cfg, cfg, other))]
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


def test_sgd_without_clip_is_the_formula(tmp_path: Path) -> None:
    """Three steps against plain tensors: θ ← θ − lr·share·(g + decay·θ), no dropout."""
    cfg = config(optimizer=Optimizer.sgd, clip=0.0, steps=3, evaluate_every=3)
    tiny, by_hand = Tiny(), Tiny()
    for net in (tiny, by_hand):
        net.drop.p = 0.0
    data = examples(22)
    finetune(tiny, cfg, [course(data[:14], data[14:])], 0, tmp_path, lambda _: None)
    by_hand.train()
    for step, batch in enumerate(Batches([course(data[:14])], 0, 4, cfg.seed, 0, 3)):
        by_hand.zero_grad()
        nn.functional.cross_entropy(by_hand(batch), batch["labels"]).backward()
        with torch.no_grad():
            for name, p in by_hand.named_parameters():
                if p.requires_grad:
                    lr = (0.1 if name.startswith("head.") else 0.05) * (1 - step / 3)
                    p -= lr * (p.grad + (0.01 * p if p.ndim > 1 else 0))
    for name, tensor in by_hand.trained().items():
        torch.testing.assert_close(tiny.trained()[name], tensor, rtol=1e-5, atol=1e-7)


# --------------------------------------------------------------------------- learning the mask


def mask_run(folder: Path, cfg: SimpleNamespace, kill: int | None = None):
    folder.mkdir(exist_ok=True)
    tiny, (log, seen), data = Tiny(), killing("mask/step", kill), examples(22)
    moved = torch.Generator().manual_seed(1)
    finetuned = {
        n: p.data + torch.randn(p.shape, generator=moved) for n, p in tiny.graftable.items()
    }
    total = sum(p.numel() for p in tiny.graftable.values())
    base = torch.arange(0, total, 5)
    before = {n: p.data.clone() for n, p in tiny.graftable.items()}
    relaxed = RelaxedGraft(tiny.graftable, finetuned, base, initial_scores(total, 3), 10.0)
    try:
        chosen, history = learn_mask(tiny, relaxed, cfg, data[:14], data[14:], 0, folder, log)
    finally:
        relaxed.close()
        assert equal({n: p.data for n, p in tiny.graftable.items()}, before)
    return chosen, history, seen, torch.zeros(total, dtype=torch.bool).index_fill_(0, base, True)


def test_a_killed_mask_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    cfg = config()
    chosen, history, seen, base = mask_run(tmp_path / "whole", cfg)
    assert history == seen
    assert [row["mask/step"] for row in history] == list(range(7))
    assert [row["mask/step"] for row in history if "mask/objective" in row] == [0, 2, 4, 6]
    for kill in (1, 4):
        with pytest.raises(Killed):
            mask_run(tmp_path / f"killed{kill}", cfg, kill)
        again = mask_run(tmp_path / f"killed{kill}", cfg)
        assert torch.equal(again[0], chosen), kill
        assert again[1] == history, kill
        assert again[2] == history, kill
    scores = [row["mask/objective"] for row in history if "mask/objective" in row]
    if scores[0] == max(scores):
        assert torch.equal(chosen, base.nonzero().view(-1))


def test_without_scoring_only_the_last_mask_is_looked_at(tmp_path: Path, monkeypatch) -> None:
    """And a checkpoint is written every few steps, from which a killed training goes on."""
    cfg, saved, kept = config(), [], mask_training.MaskTraining.save

    def save(module: mask_training.MaskTraining) -> None:
        saved.append(module.done)
        kept(module)

    monkeypatch.setattr(mask_training.MaskTraining, "save", save)
    monkeypatch.setattr(mask_training, "SAVE_EVERY", 4)
    cfg.graft.score_every = None
    chosen, history, seen, _ = mask_run(tmp_path / "whole", cfg)
    assert saved == [4, 6]
    assert history == seen
    assert [row["mask/step"] for row in history] == list(range(7))
    assert [row["mask/step"] for row in history if "mask/size" in row] == [0, 6]
    for kill in (3, 5, 6):
        with pytest.raises(Killed):
            mask_run(tmp_path / f"killed{kill}", cfg, kill)
        again = mask_run(tmp_path / f"killed{kill}", cfg)
        assert torch.equal(again[0], chosen), kill
        assert again[1] == again[2] == history, kill


def test_patience_stops_where_the_region_has_stayed_the_same(tmp_path: Path) -> None:
    cfg = config()
    whole = mask_run(tmp_path / "whole", cfg)
    cfg.graft.patience = 6
    assert mask_run(tmp_path / "patient", cfg)[1] == whole[1]  # the region changes on the way
    assert len({row["mask/size"] for row in whole[1] if "mask/size" in row}) > 1
    cfg.graft.lr, cfg.graft.patience = 0.0, 3
    chosen, history, _, base = mask_run(tmp_path / "still", cfg)
    assert [row["mask/step"] for row in history] == [0, 1, 2, 3]
    assert [row["mask/step"] for row in history if "mask/objective" in row] == [0, 2, 3]
    assert torch.equal(chosen, base.nonzero().view(-1))
    for kill in (1, 2, 3):
        with pytest.raises(Killed):
            mask_run(tmp_path / f"killed{kill}", cfg, kill)
        again = mask_run(tmp_path / f"killed{kill}", cfg)
        assert torch.equal(again[0], chosen), kill
        assert again[1] == history, kill


def test_mask_training_is_localize(tmp_path: Path) -> None:
    """The same engine: the same rows, scores and base give the region that `localize` gives."""
    from skillgraft import localize

    cfg = config()
    cfg.graft.steps = cfg.graft.score_every = 1
    cfg.graft.examples_per_step = 14
    chosen, _, _, base = mask_run(tmp_path / "learned", cfg)
    tiny, theirs = Tiny(), Tiny()
    moved = torch.Generator().manual_seed(1)
    for p in theirs.graftable.values():
        p.data += torch.randn(p.shape, generator=moved)
    total, named = 42, {n: p.shape for n, p in tiny.graftable.items()}
    cut = [p.numel() for p in tiny.graftable.values()]

    def parts(flat: Tensor) -> dict[str, Tensor]:
        return {n: t.view(named[n]) for n, t in zip(named, flat.split(cut), strict=True)}

    data = examples(22)

    def accuracy(model: nn.Module) -> float:
        total = 0.0
        for split in (data[:8], data[14:]):
            hits = [
                int(model(next(iter(Batches([course([e])], 0, 1, 0, 0, 1)))).argmax()) == e.label
                for e in split
            ]
            total += sum(hits) / len(hits)
        return total

    graft = localize(
        tiny,
        theirs,
        list(MaskBatches(data[:14], 0, 4, 14, 13, 0, 1)),
        lambda model, batch: nn.functional.cross_entropy(model(batch), batch["labels"]),
        steps=1,
        lr=1e6,
        base=parts(base),
        scores=parts(initial_scores(total, 3)),
        graftable=lambda name, _: name in named,
        score=accuracy,
    )
    assert graft.region().tolist() == chosen.tolist()


def test_a_mask_loss_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    cfg = config()
    cfg.graft.steps = 1
    tiny, data = Tiny(), examples(22)
    tiny.head.weight.data.fill_(torch.nan)
    total = 42
    finetuned = {n: p.data + 1 for n, p in tiny.graftable.items()}
    relaxed = RelaxedGraft(
        tiny.graftable, finetuned, torch.empty(0, dtype=torch.int64), torch.zeros(total), 10.0
    )
    with pytest.raises(InputError, match=r"diverged at step 1: lower graft\.lr"):
        learn_mask(tiny, relaxed, cfg, data[:14], data[14:], 0, tmp_path, lambda _: None)
    relaxed.close()
