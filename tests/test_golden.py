"""Mask learning against an independent run of the method (tests/golden, made by other code)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from skillgraft import localize
from skillgraft.core.activation import active

GOLDEN = Path(__file__).parent / "golden"
META = json.loads((GOLDEN / "meta.json").read_text())
NAMES = META["graft_names"]


def bert(weights: str, dtype: torch.dtype) -> BertForMaskedLM:
    model = BertForMaskedLM(BertConfig(**META["config"]))
    state = load_file(GOLDEN / f"{weights}.safetensors")
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    model.tie_weights()
    return model.to(dtype).eval()


def rows(split: str) -> dict[str, Tensor]:
    data = load_file(GOLDEN / "data.safetensors")
    keys = ("input_ids", "attention_mask", "mask_pos", "labels")
    return {key: data[f"{split}.{key}"] for key in keys}


def batches(split: str) -> list[dict[str, Tensor]]:
    data, start, out = rows(split), 0, []
    for size in META[f"{split}_batches"]:
        out.append({k: v[start : start + size] for k, v in data.items()})
        start += size
    return out


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    at_mask = out[torch.arange(len(out)), batch["mask_pos"].view(-1)]
    return at_mask[:, META["verbalizer_ids"]]


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(logits(model, batch), batch["labels"].view(-1))


def accuracy(model: nn.Module, split: str) -> float:
    data = rows(split)
    hits = logits(model, data).argmax(1) == data["labels"].view(-1)
    return hits.float().mean().item()


def run(dtype: torch.dtype, steps: int, seen: list[float] | None = None, **more):
    """Return the graft after `steps` steps, and the two models."""
    pretrained, finetuned = bert("theta_pre", dtype), bert("theta_ft", dtype)

    def watched(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        value = loss(model, batch)
        if seen is not None:
            seen.append(value.item())
        return value

    graft = localize(
        pretrained,
        finetuned,
        batches("train"),
        watched,
        steps=steps,
        lr=META["lr"],
        sigmoid_bias=META["sigmoid_bias"],
        base=load_file(GOLDEN / "gamma_base.safetensors"),
        scores=load_file(GOLDEN / "S0.safetensors"),
        graftable=lambda name, _: name in NAMES,
        **more,
    )
    return graft, pretrained, finetuned


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "run.safetensors")


def as_mask(graft, name: str) -> Tensor:
    mask = torch.zeros(graft.shapes[name]).view(-1)
    mask[graft.indices[name]] = 1
    return mask.view(graft.shapes[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_and_final_region(golden: dict[str, Tensor], dtype: torch.dtype) -> None:
    seen: list[float] = []
    graft, pretrained, _ = run(dtype, META["steps"], seen)
    single = dtype == torch.float32
    expected = golden["loss" if single else "loss_f64"].reshape(-1)
    tolerance = 2e-5 if single else 1e-7
    torch.testing.assert_close(
        torch.tensor(seen, dtype=expected.dtype), expected, atol=tolerance, rtol=0
    )
    for name in NAMES:
        assert torch.equal(as_mask(graft, name), golden[f"mask20/{name}"].float()), name
    with active(pretrained, graft):
        ours = logits(pretrained, rows("dev"))
    exact = golden["dev.logits_graft20_exact_f64"]
    torch.testing.assert_close(ours.double(), exact, atol=1e-5 if single else 1e-9, rtol=0)


def test_best_step_by_score(golden: dict[str, Tensor]) -> None:
    graft, _, _ = run(
        torch.float32, META["steps"], score=lambda m: accuracy(m, "train") + accuracy(m, "dev")
    )
    for name in NAMES:
        assert torch.equal(as_mask(graft, name), golden[f"mask_best/{name}"].float()), name


@pytest.mark.parametrize(("steps", "atol"), [(1, 1e-4), (5, 5e-4), (20, 4e-3)])
def test_scores(golden: dict[str, Tensor], monkeypatch, steps: int, atol: float) -> None:
    """The scores themselves, which `localize` does not return, read off the engine."""
    from skillgraft.core import relaxed_graft

    kept = []
    close = relaxed_graft.RelaxedGraft.close

    def spy(self) -> None:
        kept.append(self.layout.views(self.scores.clone()))
        close(self)

    monkeypatch.setattr(relaxed_graft.RelaxedGraft, "close", spy)
    run(torch.float32, steps)
    for name in NAMES:
        torch.testing.assert_close(kept[0][name], golden[f"S{steps}/{name}"], atol=atol, rtol=1e-4)
