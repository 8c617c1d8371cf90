"""What the engine costs beside a plain forward and backward pass, one JSON line a measurement.

    python tests/bench/bench_engine.py [--only mask,memory,…] [--size tiny|minilm|roberta]
    python tests/bench/bench_engine.py --device cuda [--precision bf16-mixed]

Models are random, 8 × 64 tokens a batch. What is compared runs side by side in one process, in turns,
several rounds: `ratio` is the median over rounds of CPU time over the floor's, `wall` the same of wall
time, `low` and `high` the least and largest `ratio`. On a busy machine CPU time is the steadier. On a
GPU kernels are deterministic, as in a run; all times are wall times, each to the end of what was
started, and memory is the GPU's.

`floor` is a forward and backward pass with gradients for every parameter, `blocks` for the graftable
ones only. `rebuild` is how the authors' code does it: every tensor by itself, p ± γ ⊙ Δ in place, a
clone of the gradients a batch. `functional` is autograd's own way: θ(S) in the graph of each batch.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from skillgraft.config.choices import PRECISIONS
from skillgraft.config.schema import RunConfig
from skillgraft.core import best_mask, layout, localize, movement, regions, relaxed_graft
from skillgraft.core.activation import active
from skillgraft.core.graft import Graft
from skillgraft.evaluation.predict import predict
from skillgraft.experiments import provenance
from skillgraft.experiments.devices import deterministic
from skillgraft.models.classifier import Classifier
from skillgraft.tasks.batches import Batch, collate, to_device
from skillgraft.tasks.encoder import Encoded
from skillgraft.training import distributed
from skillgraft.training.batches import TrainingTask
from skillgraft.training.fine_tuning import FineTuning
from skillgraft.training.mask_training import MaskTraining
from skillgraft.training.optimizer import make_optimizer
from skillgraft.training.trainer import fit, make_trainer

sys.path.insert(0, str(Path(__file__).parents[1]))

from runs import composed, make

LR, BIAS, SPARSITY = 1e7, 10.0, 1e-3
ROWS, TOKENS = 8, 64
SIZES = {"tiny": (4, 128), "minilm": (6, 384), "roberta": (12, 768)}  # blocks, width

CPU = torch.device("cpu")
Step = Callable[[], object]


@dataclass
class Where:
    """Where everything runs, and in what precision the passes are."""

    device: torch.device = CPU
    precision: str = "32-true"

    @property
    def accelerator(self) -> str:
        return "cpu" if self.device.type == "cpu" else "gpu"

    @property
    def overrides(self) -> tuple[str, str]:
        return f"trainer={self.accelerator}", f"trainer.precision={self.precision}"


HERE = Where()


def build(size: str, layers: int | None = None, width: int | None = None) -> Classifier:
    """Return a random prompted classifier; width is a multiple of 64."""
    torch.manual_seed(0)
    depth, wide = SIZES[size]
    depth, wide = layers or depth, width or wide
    large = size == "roberta"
    sizes = {
        "vocab_size": {"tiny": 2000, "minilm": 30522, "roberta": 50265}[size],
        "hidden_size": wide,
        "num_hidden_layers": depth,
        "num_attention_heads": wide // (64 if large else 32),
        "intermediate_size": 4 * wide,
    }
    model: BertForMaskedLM | RobertaForMaskedLM
    if large:
        model = RobertaForMaskedLM(RobertaConfig(**sizes, max_position_embeddings=514))
    else:
        model = BertForMaskedLM(BertConfig(**sizes))
    return Classifier(model, [r"encoder\.layer\."], words=[5, 6]).eval().to(HERE.device)


def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return fine-tuned tensors: a little off, everywhere."""
    generator = torch.Generator(HERE.device).manual_seed(1)
    options: dict[str, Any] = {"generator": generator, "device": HERE.device}
    return {n: t.detach() + 1e-3 * torch.randn(t.shape, **options) for n, t in tensors.items()}


def encoded(count: int) -> list[Encoded]:
    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(10, 1900, (count, TOKENS), generator=draw).tolist()
    return [Encoded(row, [0] * TOKENS, 5, n % 2) for n, row in enumerate(ids)]


def batches(count: int, device: torch.device | None = None) -> list[Batch]:
    rows = encoded(count * ROWS)
    groups = [rows[n : n + ROWS] for n in range(0, len(rows), ROWS)]
    return [to_device(collate(group, 0), device or HERE.device) for group in groups]


def backward(classifier: Classifier, batch: Batch) -> None:
    loss_of(classifier, batch).backward()


def loss_of(model: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
    """The loss of a batch, in the precision that was asked for."""
    half = HERE.precision == "bf16-mixed"
    with torch.autocast(HERE.device.type, torch.bfloat16, enabled=half):
        return nn.functional.cross_entropy(model(batch), batch["labels"])


# ---------------------------------------------------------------------------------------------
# One mask step, four ways. Each function returns a step over `count` batches.


def floor(classifier: Classifier, data: list[Batch], everything: bool = True) -> Step:
    if everything:
        classifier.requires_grad_(True)

    def step() -> None:
        for batch in data:
            backward(classifier, batch)
        classifier.zero_grad()

    return step


def blocks(classifier: Classifier, data: list[Batch]) -> Step:
    return floor(classifier, data, everything=False)


def engine(classifier: Classifier, data: list[Batch], finetuned: dict[str, Tensor]) -> Step:
    relaxed = opened(classifier, finetuned)

    def step() -> None:
        for batch in data:
            backward(classifier, batch)
        relaxed.step(LR / len(data))

    return step


def opened(
    classifier: Classifier, finetuned: dict[str, Tensor], sparsity: float = SPARSITY
) -> relaxed_graft.RelaxedGraft:
    before = {n: p.data for n, p in classifier.graftable.items()}
    total = layout.FlatLayout.of(before).total
    chosen = movement.base_region(finetuned, before, regions.region_size(sparsity, total))
    scores = best_mask.initial_scores(total, 0).to(HERE.device)
    return relaxed_graft.RelaxedGraft(classifier.graftable, finetuned, chosen, scores, BIAS)


class Rebuild:
    """The authors' way, tensor by tensor, with a working model beside the two models."""

    def __init__(self, classifier: Classifier, finetuned: dict[str, Tensor]) -> None:
        self.classifier = classifier.requires_grad_(True)
        self.before, self.finetuned = copy.deepcopy(classifier), finetuned
        self.delta = [finetuned[n] - p.data for n, p in classifier.graftable.items()]
        self.scores = [torch.rand_like(d) for d in self.delta]
        threshold = torch.cat([d.abs().view(-1) for d in self.delta])
        threshold = threshold.topk(int(SPARSITY * threshold.numel())).values.min()
        self.base = [(d.abs() > threshold).to(d.dtype) for d in self.delta]

    @torch.no_grad()
    def interpolate(self, rounded: bool = False) -> None:
        for n, p in enumerate(self.classifier.graftable.values()):
            share = torch.sigmoid(self.scores[n] - BIAS)
            gamma = self.base[n] * (1 - share) + (1 - self.base[n]) * share
            p.data += (gamma.round() if rounded else gamma) * self.delta[n]

    @torch.no_grad()
    def reset(self) -> None:
        for name, p in self.classifier.graftable.items():
            p.data += self.before.graftable[name].data - p.data

    def step(self, data: list[Batch]) -> None:
        self.interpolate()
        parameters = list(self.classifier.graftable.values())
        total = [torch.zeros_like(d) for d in self.delta]
        for batch in data:
            backward(self.classifier, batch)
            gradients = [p.grad.detach().clone() for p in parameters if p.grad is not None]
            self.classifier.zero_grad()
            total = [t + LR * g * d for t, g, d in zip(total, gradients, self.delta, strict=True)]
        self.reset()
        for n, gradient in enumerate(total):
            share = torch.sigmoid(self.scores[n] - BIAS)
            slope = (1 - 2 * self.base[n]) * share * (1 - share)
            self.scores[n] -= gradient / len(data) * slope


def rebuild(classifier: Classifier, data: list[Batch], finetuned: dict[str, Tensor]) -> Step:
    peer = Rebuild(classifier, finetuned)
    return lambda: peer.step(data)


def functional(classifier: Classifier, data: list[Batch], finetuned: dict[str, Tensor]) -> Step:
    names = {id(p): n for n, p in classifier.named_parameters()}
    before = {names[id(p)]: p.detach() for p in classifier.graftable.values()}
    delta = {names[id(p)]: finetuned[n] - p.data for n, p in classifier.graftable.items()}
    classifier.requires_grad_(False)
    scores = {n: torch.rand_like(d).requires_grad_() for n, d in delta.items()}
    base = {n: (d.abs() > 4e-3).to(d.dtype) for n, d in delta.items()}

    def call(weights: dict[str, Tensor], batch: Batch) -> Tensor:
        return torch.func.functional_call(classifier, weights, (batch,))

    def step() -> None:
        for batch in data:
            share = {n: torch.sigmoid(s - BIAS) for n, s in scores.items()}
            weights = {
                n: before[n] + (base[n] + (1 - 2 * base[n]) * share[n]) * delta[n] for n in scores
            }
            loss_of(partial(call, weights), batch).backward()
        with torch.no_grad():
            for s in scores.values():
                s -= LR / len(data) * s.grad
                s.grad = None

    return step


PLAIN = {"floor": floor, "blocks": blocks}
MASKED = {"engine": engine, "rebuild": rebuild, "functional": functional}


def variant(name: str, size: str, data: list[Batch], **shape: int) -> Step:
    classifier = build(size, **shape)
    if name in PLAIN:
        return PLAIN[name](classifier, data)
    return MASKED[name](classifier, data, moved(dict(classifier.graftable)))


# ---------------------------------------------------------------------------------------------
# Measuring


@dataclass
class Clock:
    """Wall and CPU seconds of what ran inside."""

    wall: float = 0.0
    cpu: float = 0.0


def now() -> tuple[float, float]:
    """Return wall and CPU seconds; on a GPU wall seconds twice, when it has done what it was given."""
    if HERE.device.type == "cuda":
        torch.cuda.synchronize()
        return (time.perf_counter(),) * 2
    return time.perf_counter(), time.process_time()


@contextmanager
def clock() -> Iterator[Clock]:
    wall, cpu = now()
    taken = Clock()
    yield taken
    ended = now()
    taken.wall, taken.cpu = ended[0] - wall, ended[1] - cpu


def once(step: Step) -> Clock:
    with clock() as taken:
        step()
    return taken


def turns(steps: dict[str, Step], rounds: int, warm: bool = True) -> dict[str, list[Clock]]:
    """Return each step's times, a round after the other, after one that does not count."""
    taken: dict[str, list[Clock]] = {name: [] for name in steps}
    for number in range(rounds + warm):
        for name, step in steps.items():
            spent = once(step)
            if number >= warm:
                taken[name].append(spent)
    return taken


def say(what: str, **figures: object) -> None:
    short = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in figures.items()}
    where = {"threads": torch.get_num_threads()}
    if HERE.device.type == "cuda":
        where = {"device": torch.cuda.get_device_name(), "precision": HERE.precision}
    print(json.dumps({"what": what, **short, **where}), flush=True)


def compare(what: str, taken: dict[str, list[Clock]], over: str, **facts: object) -> None:
    """Say each step's times, and their ratios to those of `over` in the same round."""
    for name, clocks in taken.items():
        pairs = list(zip(clocks, taken[over], strict=True))
        ratios = [mine.cpu / theirs.cpu for mine, theirs in pairs]
        say(
            f"{what}: {name} ÷ {over}",
            ratio=statistics.median(ratios),
            low=min(ratios),
            high=max(ratios),
            wall=statistics.median(mine.wall / theirs.wall for mine, theirs in pairs),
            cpu_seconds=statistics.median(c.cpu for c in clocks),
            wall_seconds=statistics.median(c.wall for c in clocks),
            rounds=len(clocks),
            **facts,
        )


# ---------------------------------------------------------------------------------------------
# The measurements


def mask_step(size: str, rounds: int) -> None:
    """A step over 1, 4 and 8 accumulated batches."""
    for count in (1, 4, 8):
        data = batches(count)
        steps = {name: variant(name, size, data) for name in (*PLAIN, *MASKED)}
        compare(f"mask step of {count}", turns(steps, rounds), "floor", size=size)


def growth(size: str, rounds: int) -> None:
    """The step at 1, 2, 4, 8 times the width and the depth of a small model."""
    data = batches(1)
    for key, start in (("width", 128), ("layers", 2)):
        for times in (1, 2, 4, 8):
            shape = {"width": 128, "layers": 2} | {key: start * times}
            steps = {name: variant(name, "tiny", data, **shape) for name in ("blocks", "engine")}
            compare(f"growth, {key} × {times}", turns(steps, rounds), "blocks", **shape)
            for name in steps:
                peak("tiny", name, f"growth, {key} × {times}, peak", **shape)


def peak(size: str, name: str, what: str, **shape: int) -> float:
    """Return and say the peak memory, in MiB, of a process that makes three steps of one batch."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "finetuned.safetensors"
        if name not in PLAIN:
            save_file(moved(dict(build(size, **shape).graftable)), file)
        options = [f"--{key}={value}" for key, value in shape.items()]
        command = [sys.executable, __file__, f"--size={size}", f"--peak={name}", f"--file={file}"]
        command += [f"--device={HERE.device}", f"--precision={HERE.precision}"]
        out = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
    mib = float(out.stdout)
    say(f"{what}: {name}", size=size, mib=mib, **shape)
    return mib


def measure_peak(name: str, size: str, file: Path, **shape: int | None) -> None:
    """In its own process: print the peak memory in MiB, RSS or the GPU's."""
    classifier, data = build(size, **shape), batches(1)
    if name == "localize":
        whole(classifier, data, file)
    else:
        plain = name in PLAIN
        step = (
            PLAIN[name](classifier, data)
            if plain
            else MASKED[name](classifier, data, load_file(file, device=str(HERE.device)))
        )
        for _ in range(3):
            step()
    peaks = provenance.peaks(HERE.accelerator)  # ru_maxrss would start from the parent's
    print(peaks.get("peak_gpu_memory_mib", peaks["peak_memory_mib"]))


def whole(classifier: Classifier, data: list[Batch], file: Path) -> None:
    """Three steps of `localize`, whose caller holds both models."""
    finetuned = copy.deepcopy(classifier)
    finetuned.restore(load_file(file))
    localize.localize(
        classifier,
        finetuned,
        data,
        loss_of,
        sparsity=SPARSITY,
        steps=3,
        graftable=lambda name, _: "encoder.layer." in name,
    )


def memory(size: str, rounds: int) -> None:
    """Peak memory of each way, a process each, and what of it is not the program itself."""
    empty = peak("tiny", "blocks", "memory, of the program with a tiny model")
    base = peak(size, "floor", "memory")
    for name in ("blocks", *MASKED, "localize"):
        mib = peak(size, name, "memory")
        n = sum(p.numel() for p in build(size).graftable.values())
        copies = (mib - empty) * 2**20 / 4 / n
        say(f"memory: {name} ÷ floor", size=size, ratio=mib / base, copies=copies)


@dataclass
class Stamped:
    """Batches that note when each is asked for: a step is the time between two."""

    data: list[Batch]
    per_step: int = 1
    stamps: list[tuple[float, float]] = field(default_factory=list)
    rank: int = 0
    start: int = 0

    @property
    def per_rank(self) -> int:
        return self.per_step

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(self.data):
            if number % self.per_step == 0:
                self.stamps.append(now())
            yield batch

    def taken(self) -> Clock:
        """Return the median step, without the first."""
        stamps = self.stamps[1:]
        pairs = list(zip(stamps[1:], stamps, strict=False))
        return Clock(
            statistics.median(b[0] - a[0] for b, a in pairs),
            statistics.median(b[1] - a[1] for b, a in pairs),
        )


def tuning(size: str, rounds: int) -> None:
    """A fine-tuning step of Lightning's loop, and of a plain one with the same optimiser and clip."""
    cfg = composed("logger=none", *HERE.overrides)
    cfg.finetune.steps = 10**6  # never the last: no validation, no file
    cfg.finetune.evaluate_every = 10**6
    count = 60 if size == "tiny" else 12
    data = (batches(4, CPU) * count)[:count]  # the loops bring each to its device
    course = TrainingTask(cfg.task.name, cfg.task.metric, [], [])
    taken: dict[str, list[Clock]] = {"lightning": [], "plain": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            stamped = Stamped(data)
            module = FineTuning(build(size), cfg, [course], 0, Path(folder), lambda _: None)
            module.batches = stamped
            trainer = make_trainer(cfg, count, Path(folder), gradient_clip_val=1.0)
            fit(trainer, module)
            taken["lightning"].append(stamped.taken())
            stamped = Stamped(data)
            plain(build(size), cfg, stamped)
            taken["plain"].append(stamped.taken())
    compare("fine-tune step", taken, "plain", size=size)


def plain(classifier: Classifier, cfg: RunConfig, data: Stamped) -> None:
    named = {n: p for n, p in classifier.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(cfg.finetune, named)
    classifier.train()
    for batch in data:
        backward(classifier, to_device(batch, HERE.device))
        nn.utils.clip_grad_norm_(list(named.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def learning(size: str, rounds: int) -> None:
    """A mask step of Lightning's loop over four batches, and the engine's own."""
    cfg = composed("logger=none", "graft.score_every=null", *HERE.overrides)
    cfg.graft.steps = 10**6
    count = 4
    few = batches(count)
    data = batches(count, CPU) * (15 if size == "tiny" else 5)
    taken: dict[str, list[Clock]] = {"lightning": [], "engine": [], "blocks": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            classifier = build(size)
            relaxed = opened(classifier, moved(dict(classifier.graftable)))
            stamped = Stamped(data, per_step=count)
            module = MaskTraining(
                classifier, relaxed, cfg, stamped, {}, Path(folder), lambda _: None
            )
            trainer = make_trainer(cfg, len(data), Path(folder), accumulate_grad_batches=count)
            fit(trainer, module)
            taken["lightning"].append(stamped.taken())
            for name in ("engine", "blocks"):
                times = turns({name: variant(name, size, few)}, 5)[name]
                wall, cpu = (
                    statistics.median(getattr(c, k) for c in times) for k in ("wall", "cpu")
                )
                taken[name].append(Clock(wall, cpu))
    compare(f"mask training, step of {count}", taken, "blocks", size=size)


def setup(size: str, rounds: int) -> None:
    """Base region alone, and with an engine opened on it, over reading the two checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        before, after = (Path(folder) / f"{name}.safetensors" for name in ("before", "after"))
        classifier = build(size)
        tensors = {n: p.detach() for n, p in classifier.graftable.items()}
        save_file(tensors, before)
        save_file(moved(tensors), after)

        def read() -> list[dict[str, Tensor]]:
            files = [load_file(f) for f in (before, after)]
            return [{n: t.to(HERE.device, copy=True) for n, t in f.items()} for f in files]

        finetuned = read()[1]
        total = layout.FlatLayout.of(tensors).total

        def base(sparsity: float) -> Step:
            return lambda: movement.base_region(finetuned, tensors, round(sparsity * total))

        def start(sparsity: float) -> Step:
            return lambda: opened(classifier, read()[1], sparsity).close()

        shares = (1e-5, 1e-3, 1e-2, 1e-1)
        steps: dict[str, Step] = {"read": read}
        steps |= {f"base region, s = {s:g}": base(s) for s in shares}
        steps |= {f"read and open, s = {s:g}": start(s) for s in shares}
        compare("set-up", turns(steps, rounds), "read", size=size)


def grafts(size: str, rounds: int) -> None:
    """Apply and undo; score a candidate; the file."""
    classifier = build(size)
    finetuned = moved(dict(classifier.graftable))
    peer = Rebuild(build(size), finetuned)
    before = {n: p.data for n, p in classifier.graftable.items()}
    total = layout.FlatLayout.of(before).total
    for sparsity in (1e-4, 1e-2):
        chosen = movement.base_region(finetuned, before, regions.region_size(sparsity, total))
        graft = Graft.take(chosen, before, finetuned)

        def apply(graft: Graft = graft) -> None:
            with active(classifier, graft):
                pass

        def theirs() -> None:
            peer.interpolate(rounded=True)
            peer.reset()

        steps = {"graft": apply, "rebuild": theirs}
        facts = {"size": size, "sparsity": sparsity}
        compare("apply and undo", turns(steps, rounds), "rebuild", **facts)

        with tempfile.TemporaryDirectory() as folder:
            file = graft.save(Path(folder) / "graft.safetensors")
            load = turns({"load": lambda file=file: Graft.load(file)}, rounds)["load"]
            say(
                "graft file",
                bytes=file.stat().st_size,
                bytes_an_entry=file.stat().st_size / max(1, graft.size),
                scores_file_bytes=4 * total,
                load_seconds=statistics.median(c.cpu for c in load),
                rounds=rounds,
                **facts,
            )
        relaxed = opened(classifier, finetuned, sparsity)
        candidate(classifier, relaxed, rounds, facts)
        relaxed.close()


def candidate(
    classifier: Classifier, relaxed: relaxed_graft.RelaxedGraft, rounds: int, facts: dict[str, Any]
) -> None:
    """Score a candidate region: find it in the scores, write it, predict some rows, put it back."""
    rows, chosen = encoded(32), relaxed.region()

    def passes() -> None:
        predict(classifier, rows, 0, 64)

    def write() -> None:
        with relaxed.rounded(chosen):
            pass

    def score() -> None:
        with relaxed.rounded(relaxed.region()):
            passes()

    steps: dict[str, Step] = {
        "prediction pass": passes,
        "score": score,
        "find": relaxed.region,
        "write and put back": write,
    }
    taken = turns(steps, rounds)
    compare("candidate region", taken, "prediction pass", rows=len(rows), **facts)


class Inside:
    """The CPU time that is spent inside some functions, whichever of them calls which."""

    def __init__(self) -> None:
        self.seconds, self.depth = 0.0, 0

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            self.depth += 1
            start = now()[1]
            try:
                return function(*arguments, **options)
            finally:
                self.depth -= 1
                if self.depth == 0:
                    self.seconds += now()[1] - start

        return timed


def tokens(size: str, rounds: int) -> None:
    """A whole default run: what it reads a second, real tokens without padding, and where its time goes."""
    seen, inside, scoring = {"training": 0, "other": 0}, Inside(), Inside()
    forward = inside.of(Classifier.forward)

    def counted(self: Classifier, batch: Batch) -> Tensor:
        kind = "training" if torch.is_grad_enabled() else "other"
        seen[kind] += int(batch["attention_mask"].sum())
        return forward(self, batch)

    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as patched:
        for owner, name, new in (
            (Classifier, "forward", counted),
            (Tensor, "backward", inside.of(Tensor.backward)),
            (relaxed_graft.RelaxedGraft, "step", inside.of(relaxed_graft.RelaxedGraft.step)),
            (torch.optim.SGD, "step", inside.of(torch.optim.SGD.step)),
            (MaskTraining, "score", scoring.of(MaskTraining.score)),
        ):
            patched.enter_context(patch.object(owner, name, new))
        with clock() as taken:
            run = make(Path(folder), f"threads={threads}", *HERE.overrides)
        facts = json.loads((run / "provenance.json").read_text())
    say(
        "default run",
        tokens_trained=seen["training"],
        tokens_evaluated=seen["other"],
        tokens_a_cpu_second=sum(seen.values()) / taken.cpu,
        wall_seconds=taken.wall,
        cpu_seconds=taken.cpu,
        inside_share=inside.seconds / taken.cpu,
        scoring_share=scoring.seconds / taken.cpu,
        stages=facts["seconds"],
    )


def command(size: str, rounds: int) -> None:
    """The default command, in processes of its own: made, then found."""
    program = str(Path(sys.executable).parent / "skillgraft")
    line = [program, f"threads={torch.get_num_threads()}", *HERE.overrides]
    with tempfile.TemporaryDirectory() as folder:
        for what in ("made", *["found"] * rounds):
            start = time.perf_counter()
            subprocess.run([*line, f"store={folder}"], check=True, capture_output=True)
            say(f"default command: {what}", wall_seconds=time.perf_counter() - start)


ALL = {
    "mask": mask_step,
    "memory": memory,
    "tuning": tuning,
    "learning": learning,
    "setup": setup,
    "grafts": grafts,
    "tokens": tokens,
    "command": command,
    "growth": growth,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(ALL), help="of " + ", ".join(ALL))
    parser.add_argument("--size", default="minilm", choices=SIZES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="32-true", choices=PRECISIONS)
    for name in ("--peak", "--file", "--layers", "--width"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    HERE.device, HERE.precision = torch.device(options.device), options.precision
    warnings.simplefilter("ignore")
    distributed.quiet()
    with deterministic() if HERE.device.type == "cuda" else nullcontext():
        if options.peak:
            given = (("layers", options.layers), ("width", options.width))
            shape = {k: v and int(v) for k, v in given}
            measure_peak(options.peak, options.size, options.file, **shape)
            return
        for name in options.only.split(","):
            ALL[name](options.size, options.rounds)


if __name__ == "__main__":
    main()
