"""Kinds of fine-tuning: the l1 step, biases alone, low-rank updates, entries held fast, and mixtures."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from models import checkpoint
from runs import TINY, composed, make, refused, results
from skillgraft.config.choices import LRSchedule, Metric, Optimizer, Trainable
from skillgraft.core.graft import Graft
from skillgraft.core.graft_facts import sizes_of
from skillgraft.models.classifier import Classifier
from skillgraft.runtime import files
from skillgraft.runtime.errors import InputError
from skillgraft.tasks.encoder import Encoded
from skillgraft.training.batches import Batches, TrainingTask
from skillgraft.training.fine_tuning import FineTuning, finetune
from skillgraft.training.trainable import trainable
from test_training import Killed, Tiny, config, course, equal, examples, killing


def trained(tmp_path: Path, cfg: SimpleNamespace, only: dict[str, Tensor] | None = None) -> Tiny:
    """Return a small classifier after fine-tuning, without dropout."""
    tmp_path.mkdir(exist_ok=True)
    tiny, data = Tiny(), examples(22)
    tiny.drop.p = 0.0
    finetune(tiny, cfg, [course(data[:14], data[14:])], 0, tmp_path, lambda _: None, only)
    return tiny


def first_gradient(tiny: Tiny, size: int = 4) -> dict[str, Tensor]:
    """Return the gradient of the first batch's loss at the start."""
    (batch,) = Batches([course(examples(22)[:14])], 0, size, 13, 0, 1)
    tiny.drop.p = 0.0
    tiny.zero_grad()
    nn.functional.cross_entropy(tiny(batch), batch["labels"]).backward()
    return {name: p.grad.clone() for name, p in tiny.graftable.items()}


# ------------------------------------------------------------------------------- the l1 step


@pytest.mark.parametrize("l1", [0.01, 0.1, 1.0])
def test_a_proximal_step_is_the_formula(tmp_path: Path, l1: float) -> None:
    """θ ← θ_pre + soft(θ − lr · g − θ_pre, lr · l1), soft(x, t) = sign(x) max(|x| − t, 0)."""
    lr, start = 0.5, Tiny()
    gradient = first_gradient(Tiny())
    cfg = config(
        optimizer=Optimizer.sgd, lr=lr, gradient_clip_val=0.0, steps=1, weight_decay=0.0, l1=l1
    )
    tiny = trained(tmp_path, cfg)
    for name, p in tiny.graftable.items():
        step = -lr * gradient[name]
        moved = torch.where(step.abs() > lr * l1, step - step.sign() * lr * l1, 0.0)
        torch.testing.assert_close(p.data, start.graftable[name].data + moved)
        still = step.abs() < 0.999 * lr * l1
        assert torch.equal(p.data[still], start.graftable[name].data[still])


def unmoved(tiny: Tiny) -> float:
    """Return the share of graftable entries whose bits are those of the start."""
    pairs = [(p.data, Tiny().graftable[n].data) for n, p in tiny.graftable.items()]
    same = sum(int((a == b).sum()) for a, b in pairs)
    return same / sum(a.numel() for a, _ in pairs)


@pytest.mark.parametrize("kind", list(Optimizer))
def test_the_stronger_the_penalty_the_fewer_entries_move(tmp_path: Path, kind: Optimizer) -> None:
    found = []
    for l1 in (0.0, 0.01, 0.1, 0.3, 3.0):
        options: dict[str, Any] = {"optimizer": kind, "lr_schedule": LRSchedule.constant}
        tiny = trained(tmp_path / str(l1), config(l1=l1, evaluate_every=24, **options))
        found.append(unmoved(tiny))
    assert found == sorted(found)
    assert found[0] < 0.1
    assert found[-1] == 1  # a step of the optimiser is shorter than the threshold
    assert len(set(found)) >= 3


@pytest.mark.parametrize("step", [0, 7, 23])
def test_entries_come_back_to_where_they_were(tmp_path: Path, step: int) -> None:
    """To the bit where they are off by less than lr · l1 of the step, else nearer by that much."""
    cfg = config(lr=0.5, l1=0.2, lr_schedule=LRSchedule.linear, steps=24)
    tiny, start = Tiny(), Tiny()
    module = FineTuning(tiny, cfg, [], 0, tmp_path, lambda _: None)
    module.progress.step = step
    threshold = 0.5 * (1 - step / 24) * 0.2
    off = threshold * torch.linspace(-3, 3, 36).view(6, 6)
    with torch.no_grad():
        tiny.layer.weight += off
    module.proximal_step()
    near = off.abs() < 0.99 * threshold
    assert torch.equal(tiny.layer.weight[near], start.layer.weight[near])
    assert torch.equal(tiny.layer.bias, start.layer.bias)
    expected = (start.layer.weight + off - off.sign() * threshold)[~near]
    torch.testing.assert_close(tiny.layer.weight[~near], expected)


def test_a_killed_l1_fine_tuning_measures_from_the_start(tmp_path: Path) -> None:
    """After a resume the movement is still that from θ_pre, not from the checkpoint."""
    cfg, data = config(l1=0.1, evaluate_every=5), examples(22)

    def run(place: Path, kill: int | None) -> dict[str, Tensor]:
        place.mkdir(exist_ok=True)
        tiny, (log, _) = Tiny(), killing("finetune/step", kill)
        finetune(tiny, cfg, [course(data[:14], data[14:])], 0, place, log)
        return {n: t.clone() for n, t in tiny.trained().items()}

    whole = run(tmp_path / "whole", None)
    with pytest.raises(Killed):
        run(tmp_path / "killed", 15)
    assert equal(run(tmp_path / "killed", None), whole)


# --------------------------------------------------------------------------------- biases alone


@pytest.mark.parametrize("l1", [0.0, 0.01])
def test_biases_alone(tmp_path: Path, l1: float) -> None:
    tiny, start = trained(tmp_path, config(trainable=Trainable.bias, l1=l1)), Tiny()
    assert torch.equal(tiny.layer.weight, start.layer.weight)
    assert not torch.equal(tiny.layer.bias, start.layer.bias)
    assert all(p.requires_grad for p in tiny.graftable.values())  # all can be grafted after


def test_a_model_without_biases_is_an_error(tmp_path: Path) -> None:
    tiny = Tiny()
    del tiny.graftable["layer.bias"]
    with pytest.raises(InputError, match=r"finetune.trainable=bias: .* no bias"):
        finetune(
            tiny,
            config(trainable=Trainable.bias),
            [course(examples(4))],
            0,
            tmp_path,
            lambda _: None,
        )


# ----------------------------------------------------------------------------- entries held fast


def half() -> dict[str, Tensor]:
    masks = {n: torch.zeros(p.shape, dtype=torch.bool) for n, p in Tiny().graftable.items()}
    masks["layer.weight"][::2] = True
    masks["layer.bias"][1] = True
    return masks


@pytest.mark.parametrize("kind", list(Optimizer))
def test_entries_held_fast_keep_their_bits(tmp_path: Path, kind: Optimizer) -> None:
    masks, start = half(), Tiny()
    tiny = trained(tmp_path, config(optimizer=kind, weight_decay=0.3), masks)
    for name, mask in masks.items():
        moved = tiny.graftable[name] != start.graftable[name]
        assert not moved[~mask].any()
        assert moved[mask].all()


def test_the_clipped_norm_is_that_of_what_is_trained(tmp_path: Path) -> None:
    """As if the entries held fast were no parameters at all: by hand, one step of SGD."""
    masks, start, lr, clip = half(), Tiny(), 0.5, 1e-3
    start.head.requires_grad_(False)
    gradient = {n: g * masks[n] for n, g in first_gradient(Tiny()).items()}
    norm = torch.cat([g.reshape(-1) for g in gradient.values()]).norm()
    assert norm > clip
    options: dict[str, Any] = {"optimizer": Optimizer.sgd, "weight_decay": 0.0, "steps": 1}
    tiny, data = Tiny(), examples(22)
    tiny.drop.p = 0.0
    tiny.head.requires_grad_(False)
    cfg = config(lr=lr, gradient_clip_val=clip, **options)
    finetune(tiny, cfg, [course(data[:14], data[14:])], 0, tmp_path, lambda _: None, masks)
    for name, p in tiny.graftable.items():
        step = -lr * gradient[name] * clip / norm
        torch.testing.assert_close(p.data - start.graftable[name].data, step, rtol=1e-3, atol=1e-7)


# --------------------------------------------------------------------------- low-rank updates


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("models") / "bert")


LORA = ("model=hub", "model.name=small", "finetune=lora", "finetune.rank=2", "finetune.alpha=6")


def small(bert: Path, **options: Any) -> tuple[Classifier, Any]:
    """Return a random masked LM as a classifier, and its configuration."""
    from skillgraft.models.pretrained import load_model, load_tokenizer

    cfg = composed(*TINY, *LORA, f"model.path={bert}", "trainer.progress=false")
    for name, value in options.items():
        setattr(cfg.finetune, name, value)
    return load_model(cfg, bert, load_tokenizer(bert)), cfg


def prompts(n: int) -> list[Encoded]:
    """Rows of the small model's own tokens; 4 is its mask token."""
    return [Encoded([2, 5 + i, 4, 6 + i % 3, 3], [0] * 5, 2, i % 2) for i in range(n)]


def batch_of(n: int) -> dict[str, Tensor]:
    from skillgraft.tasks.batches import collate

    return collate(prompts(n), 0)


def state(classifier: Classifier) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in classifier.named_parameters()}


def test_merged_weights_are_the_adapted_model(bert: Path) -> None:
    classifier, cfg = small(bert)
    before, batch = state(classifier), batch_of(6)
    kept = {n: id(p) for n, p in classifier.graftable.items()}
    updates = {}
    with torch.no_grad():
        plain = classifier(batch)
        with trainable(classifier, cfg):
            assert torch.equal(classifier(batch), plain)  # an update starts at 0
            named = dict(classifier.named_parameters())
            trains = {n: p for n, p in named.items() if p.requires_grad}
            for name, p in trains.items():
                assert ".lora_A." in name or ".lora_B." in name
                p.normal_(0, 0.3)
            for name, a in trains.items():
                if ".lora_A." in name:
                    b = trains[name.replace("lora_A", "lora_B")]
                    assert a.shape[0] == b.shape[1] == 2
                    updates[name.split(".lora_A")[0] + ".weight"] = 6 / 2 * (b @ a)
            adapted = classifier(batch)
        merged = classifier(batch)
    assert not torch.allclose(adapted, plain, atol=1e-2)
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-5)
    after = state(classifier)
    assert list(after) == list(before)
    assert {n: id(p) for n, p in classifier.graftable.items()} == kept
    assert all(p.requires_grad for p in classifier.graftable.values())
    assert sum(p.requires_grad for p in classifier.parameters()) == len(classifier.graftable)
    matrices = {n for n, p in classifier.graftable.items() if p.ndim == 2}
    assert {n.split("bert.", 1)[1] for n in updates} == matrices
    for name, tensor in after.items():
        expected = before[name] + updates.get(name, torch.zeros(()))
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)
        if name not in updates:
            assert torch.equal(tensor, before[name])


def lora_run(bert: Path, place: Path, kill: int | None = None) -> tuple[dict[str, Tensor], list]:
    place.mkdir(exist_ok=True)
    classifier, cfg = small(bert, steps=6, evaluate_every=2, lr=0.02)
    log, seen = killing("finetune/step", kill)
    finetune(classifier, cfg, [course(prompts(8), prompts(6))], 0, place, log)
    return {n: t.clone() for n, t in classifier.trained().items()}, seen


def test_a_killed_lora_fine_tuning_ends_with_the_same_bits(bert: Path, tmp_path: Path) -> None:
    whole = lora_run(bert, tmp_path / "whole")
    start = small(bert)[0].trained()
    for name, tensor in whole[0].items():
        if tensor.ndim == 2:
            assert torch.linalg.matrix_rank(tensor - start[name], rtol=1e-3) <= 2
            assert not torch.equal(tensor, start[name])
        else:
            assert torch.equal(tensor, start[name])
    for kill in (2, 6):
        with pytest.raises(Killed):
            lora_run(bert, tmp_path / str(kill), kill)
        torch.rand(5)
        again = lora_run(bert, tmp_path / str(kill))
        assert equal(again[0], whole[0]), kill
        assert again[1] == whole[1], kill


def test_a_region_of_a_lora_model(bert: Path, tmp_path: Path, undrawn: None) -> None:
    """All of its movement, grafted, is the model that was measured; the store shares it as any other."""
    task = ("task.max_length=40",)
    options = (*TINY, *LORA, f"model.path={bert}", *task, "finetune.lr=0.02")
    full = make(tmp_path, *options, "graft=movement", "sparsity=1")
    metrics = files.read_json(full / "metrics.json")
    assert metrics["graft"]["test"]["nll"] == metrics["finetuned"]["test"]["nll"]
    assert metrics["finetuned"]["test"]["nll"] != metrics["pretrained"]["test"]["nll"]
    other = make(tmp_path, *options, "graft=random")
    assert "finetune" not in files.read_json(other / "provenance.json")["seconds"]


# ------------------------------------------------------------------------------------ mixtures


def mixed(*sizes: int) -> list[TrainingTask]:
    """Tasks whose rows and words tell them apart."""
    out, first = [], 0
    for number, n in enumerate(sizes):
        rows = [Encoded([10 + first + i], [0], 0, i % 2) for i in range(n)]
        words = torch.tensor([100 * number, 100 * number + 1])
        out.append(TrainingTask(f"task{number}", Metric.accuracy, rows, rows[:4], words))
        first += n
    return out


def seen_by(courses: list[TrainingTask], **options: Any) -> list[tuple[int, tuple[int, ...]]]:
    """Return, a batch, the task that its words name and its rows."""
    batches = Batches(courses, 0, options.pop("size", 3), options.pop("seed", 0), **options)
    return [
        (int(b["words"][0]) // 100, tuple((b["input_ids"][:, 0] - 10).tolist())) for b in batches
    ]


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    cycles=st.integers(1, 6),
    start=st.integers(0, 30),
    seed=st.integers(0, 1000),
)
def test_every_cycle_has_one_batch_of_each_task(sizes, cycles, start, seed) -> None:
    courses, tasks = mixed(*sizes), len(sizes)
    whole = seen_by(courses, seed=seed, start=0, steps=cycles * tasks)
    ends = [sum(sizes[:i]) for i in range(tasks + 1)]
    for task, rows in whole:  # words and rows are of one task
        assert all(ends[task] <= row < ends[task + 1] for row in rows)
    for cycle in range(cycles):
        part = whole[cycle * tasks : (cycle + 1) * tasks]
        assert sorted(task for task, _ in part) == list(range(tasks))
    for task, size in enumerate(sizes):  # each task has its own epochs, every row once in each
        rows = [r for t, group in whole if t == task for r in group]
        epochs = [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)]
        assert all(Counter(e) == Counter(range(ends[task], ends[task + 1])) for e in epochs)
    start = min(start, len(whole))
    assert seen_by(courses, seed=seed, start=start, steps=cycles * tasks) == whole[start:]


def test_the_order_within_a_cycle_is_drawn_anew() -> None:
    whole = [task for task, _ in seen_by(mixed(6, 6, 6), start=0, steps=60)]
    cycles = {tuple(whole[i : i + 3]) for i in range(0, 60, 3)}
    assert len(cycles) > 3


class Worded(Tiny):
    """A Tiny whose classes are those that a batch's words name."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        logits = super().forward(batch)
        return logits if batch["words"][0] == 0 else logits.flip(1)


def test_a_mixture_keeps_the_model_that_is_best_in_the_mean(tmp_path: Path) -> None:
    tiny, (log, seen) = Worded(), killing("", None)
    progress = finetune(tiny, config(evaluate_every=4), mixed(9, 5), 0, tmp_path, log)
    keys = [f"finetune/validation/task{i}/accuracy" for i in range(2)]
    by_step: dict[int, list[float]] = {}
    for row in seen:
        for key in keys:
            if key in row:
                by_step.setdefault(row["finetune/step"], []).append(row[key])
    assert all(len(values) == 2 for values in by_step.values())
    means = {step: sum(values) / 2 for step, values in by_step.items()}
    assert progress.best_score == max(means.values())
    assert progress.best_step == min(s for s, m in means.items() if m == max(means.values()))


# --------------------------------------------------------------------------------- in whole runs


@pytest.fixture(scope="module")
def bitfit(tmp_path_factory: pytest.TempPathFactory, undrawn: None) -> Path:
    return make(tmp_path_factory.mktemp("store"), *TINY, "finetune=bitfit", "graft=bias")


def test_the_bias_region_of_a_bias_only_movement_is_the_whole_skill(bitfit: Path) -> None:
    graft = Graft.load(bitfit / "graft.safetensors")
    digest = files.read_json(bitfit / "status.json")["finetuned"]
    after = load_file(bitfit.parent / ".finetuned" / digest / "weights.safetensors")
    from skillgraft.embedded import MODEL

    before = load_file(MODEL / "model.safetensors")
    moved = {n for n, t in after.items() if not torch.equal(t, before[f"bert.{n}"])}
    assert moved
    assert {n for n, size in sizes_of(graft).items() if size} >= moved
    assert all(n.endswith("bias") for n, size in sizes_of(graft).items() if size)
    metrics = files.read_json(bitfit / "metrics.json")
    for split, measured in metrics["graft"].items():
        assert metrics["finetuned"][split].items() <= measured.items()
        assert measured["agreement"] == 1


def test_movement_finds_a_bias_only_movement(bitfit: Path) -> None:
    place = bitfit.parent
    moved = make(place, *TINY, "finetune=bitfit", "graft=movement", "sparsity=1e-4")
    sizes = sizes_of(Graft.load(moved / "graft.safetensors"))
    assert sum(sizes.values()) > 50
    assert all(name.endswith("bias") for name, size in sizes.items() if size)


KINDS: dict[str, tuple[str, ...]] = {
    "bitfit": ("finetune=bitfit",),
    "lora": ("finetune=lora", "finetune.rank=2"),
    "prompt_l1": ("finetune=prompt_l1",),
    "multitask": ("finetune=multitask", "finetune.tasks=[toy_film,toy_topic]"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_ends_with_the_same_bits(
    tmp_path: Path, undrawn: None, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the checkpoint at step 2, in the middle of fine-tuning."""
    options = (*TINY, *KINDS[kind], "graft=movement")
    options = (*options, "finetune.steps=4", "finetune.evaluate_every=2")
    whole = make(tmp_path / "whole", *options)
    end = FineTuning.on_train_batch_end

    def dying(self: FineTuning, *arguments: Any) -> None:
        end(self, *arguments)
        if self.progress.step == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(FineTuning, "on_train_batch_end", dying)
        with pytest.raises(Killed):
            make(tmp_path / "killed", *options)
    assert list((tmp_path / "killed" / ".partial").glob("*/resume.safetensors"))
    again = make(tmp_path / "killed", *options)
    assert again.name == whole.name
    assert results(again) == results(whole)
    history = [json.loads(f.read_text()) for f in tmp_path.glob("*/.finetuned/*/history.json")]
    assert history[0] == history[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("finetune=lora", "finetune.rank=null"),
            ["finetune.rank", "finetune.trainable=lora needs"],
        ),
        (("finetune.trainable=lora",), ["finetune.rank", "finetune.trainable=lora needs"]),
        (("finetune=lora", "finetune.rank=0"), ["finetune.rank=0", "at least 1"]),
        (("finetune=lora", "finetune.l1=0.1"), ["finetune.l1", "not for finetune.trainable=lora"]),
        (("finetune.l1=-1",), ["finetune.l1=-1", "at least 0"]),
        (("finetune=multitask",), ["finetune.tasks: no value"]),
        (
            ("finetune=multitask", "finetune.tasks=[toy_topic,toy_subj]"),
            ["finetune.tasks=['toy_topic', 'toy_subj']", "task.name=toy_film among them"],
        ),
        (
            ("finetune=multitask", "finetune.tasks=[toy_film,toy_film]"),
            ["finetune.tasks", "different tasks"],
        ),
        (
            ("finetune=multitask", "finetune.tasks=[toy_film,toy_topics]"),
            ["finetune.tasks: no task 'toy_topics'", "Did you mean 'toy_topic'?"],
        ),
        (
            ("finetune=linear", "finetune.tasks=[toy_film,toy_topic]"),
            ["finetune.tasks", "do not share a linear head"],
        ),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, options, words: list[str]) -> None:
    refused(tmp_path, words, *TINY, *options)
