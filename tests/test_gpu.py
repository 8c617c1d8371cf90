"""The same on a GPU: whole runs, the same bits twice and after a kill, and the region a CPU finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from runs import SMALL, composed, make, results
from skillgraft.config import choices
from skillgraft.core.graft import Graft
from skillgraft.core.localize import localize
from skillgraft.runtime import files
from skillgraft.store import checksums

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
GPU = (*SMALL, "trainer=gpu", "logger=none", "compare.temperature=true")


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("graft=stitch_l1", "graft.batch_size=8"),
        ("graft=attribution", "graft.greedy_rounds=2"),
        ("graft=fisher",),
        (
            "graft=movement",
            "compare.wise_ft_alphas=[0.5]",
            "compare.lottery_steps=[3]",
            "compare.inside_steps=[3]",
        ),
        ("finetune=linear",),
        ("finetune=multitask", "finetune.tasks=[toy_film,toy_topic]"),
        ("finetune=prompt_l1",),
    ],
)
def test_a_run_gives_the_same_bits_twice(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """Deterministic kernels: metrics, predictions and graft agree to the bit."""
    first, second = (make(tmp_path / name, *GPU, *overrides) for name in "ab")
    assert results(first) == results(second)


def test_a_run_is_near_the_same_run_on_a_cpu(tmp_path: Path) -> None:
    """Predictions agree to float32's error, and most of the region is the same."""
    here = make(tmp_path, *GPU, "finetune.steps=4")
    there = make(tmp_path, *SMALL, "logger=none", "compare.temperature=true", "finetune.steps=4")
    assert here != there  # the device is part of a run's identity
    a, b = (
        files.read_json(folder / "metrics.json")["pretrained"]["test"] for folder in (here, there)
    )
    assert a == pytest.approx(b, abs=1e-4)
    one, other = (Graft.load(folder / "graft.safetensors") for folder in (here, there))
    assert one.iou(other) > 0.5  # dropout draws other numbers on a GPU


@pytest.mark.parametrize("kind", ["prompt", "prompt_l1"])
def test_fine_tuning_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The optimiser's moments come back on the device, and the bits are those of an unbroken run."""
    from skillgraft.training import fine_tuning

    options = (*GPU, f"finetune={kind}", "finetune.steps=20", "finetune.evaluate_every=10")
    whole = make(tmp_path / "whole", *options)
    kept = fine_tuning.FineTuning.save

    def stop(self: fine_tuning.FineTuning) -> None:
        kept(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(fine_tuning.FineTuning, "save", stop)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        make(tmp_path / "broken", *options)
    monkeypatch.setattr(fine_tuning.FineTuning, "save", kept)
    assert results(make(tmp_path / "broken", *options)) == results(whole)


def test_half_precision_makes_a_whole_run(tmp_path: Path) -> None:
    """bf16 autocast: the scores stay fp32, and the run ends like any other."""
    folder = make(tmp_path, *GPU, "trainer.precision=bf16-mixed")
    assert checksums.is_complete(folder)


def test_localize_finds_on_a_gpu_what_it_finds_on_a_cpu() -> None:
    """The same scores from the same seed; the same region, both models left on their device."""
    torch.manual_seed(0)
    before = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 2))
    after = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 2))
    x, y = torch.randn(64, 16), torch.randint(0, 2, (64,))

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def found(device: str) -> torch.Tensor:
        batches = [(x.to(device), y.to(device))]
        graft = localize(before.to(device), after.to(device), batches, loss, sparsity=0.1, steps=20)
        assert next(before.parameters()).device.type == device
        return graft.region()

    on_cpu = found("cpu")
    on_gpu = found("cuda")
    assert len(set(on_cpu.tolist()) ^ set(on_gpu.tolist())) <= 2  # a score that is all but c


def tuned(folder: Path, devices: int, strategy: str) -> dict[str, torch.Tensor]:
    """Fine-tune the embedded model without dropout, and return what was trained."""
    from skillgraft.models import checkpoint_files, pretrained
    from skillgraft.training.fine_tuning import finetune
    from skillgraft.training.resumable import log_nothing
    from test_training import course, examples

    cfg = composed("trainer=gpu", "finetune.steps=4", "finetune.evaluate_every=4")
    cfg.trainer.devices, cfg.trainer.strategy = devices, choices.Strategy(strategy)
    cfg.trainer.progress = False
    base = checkpoint_files.locate(cfg.model)
    classifier = pretrained.load_model(cfg, base, pretrained.load_tokenizer(base)).to("cuda")
    for module in classifier.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    folder.mkdir()
    data = examples(12)
    finetune(classifier, cfg, [course(data[:8], data[8:])], 0, folder, log_nothing)
    return {name: tensor.cpu() for name, tensor in classifier.trained().items()}


@pytest.mark.parametrize(("strategy", "devices"), [("fsdp", 1), ("fsdp", 2), ("ddp", 2)])
def test_fine_tuning_by_ranks_is_that_of_one_device(
    tmp_path: Path, strategy: str, devices: int
) -> None:
    """Over NCCL; on one GPU a single rank has every shard."""
    if torch.cuda.device_count() < devices:
        pytest.skip(f"torch sees fewer than {devices} GPUs")
    one, more = tuned(tmp_path / "one", 1, "ddp"), tuned(tmp_path / "more", devices, strategy)
    for name, tensor in one.items():
        torch.testing.assert_close(more[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_run_whose_fine_tuning_was_sharded(tmp_path: Path) -> None:
    """θ_pre waits on the CPU meanwhile; mask training and every comparison model find it there."""
    both = ("compare.wise_ft_alphas=[0.5]", "compare.lottery_steps=[3]", "compare.inside_steps=[3]")
    folder = make(tmp_path, *GPU, "trainer=fsdp", "trainer.devices=1", *both)
    assert checksums.is_complete(folder)
