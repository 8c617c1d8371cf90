"""One run, end to end, on the embedded suite: what it leaves, finds again, shares and logs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import safe_open

from runs import SIZED, SMALL, TINY, command, composed, expanded, make, refused
from skillgraft.core.graft import Graft
from skillgraft.experiments import provenance
from skillgraft.experiments.devices import deterministic
from skillgraft.runtime import files
from skillgraft.runtime.errors import InputError
from skillgraft.runtime.seeds import derive
from skillgraft.store import checksums, folders
from skillgraft.store.metric_names import flatten


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def film(place: Path) -> Path:
    """A whole run with W&B offline."""
    return make(place, *SMALL)


def records(folder: Path, *arguments: str) -> str:
    """Return, as JSON text, what W&B's own reader finds in a run's offline file."""
    file = next((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    return subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *arguments, str(file)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def summary_of(folder: Path) -> dict:
    """Return the W&B run's summary and configuration."""
    return json.loads(records(folder, "--summary"))


# ------------------------------------------------------------------------------ what a run leaves


def test_folder_is_whole(film: Path) -> None:
    names = {
        "checksums.txt", "config.yaml", "graft.safetensors", "history.json", "metrics.json",
        "overlap.json", "predictions.parquet", "provenance.json", "status.json", "figures", "wandb",
    }  # fmt: skip
    assert {path.name for path in film.iterdir()} == names
    assert checksums.verify(film) == []
    assert not list((film.parent / ".partial").iterdir())
    assert not [path for path in film.rglob("*") if path.is_symlink()]


def test_name_says_what_it_is(film: Path) -> None:
    assert film.name.startswith("toy_film-tiny-learned-s0.01-seed13-")


def test_metrics(film: Path) -> None:
    metrics = files.read_json(film / "metrics.json")
    splits = {"validation", "test", "ood/toy_film_slang", "ood/toy_book", "ood/toy_gadget"}
    common = {"accuracy", "ece", "nll", "brier"}
    for model in ("pretrained", "finetuned", "graft"):
        assert set(metrics[model]) == splits
        for measured in metrics[model].values():
            extra = {"agreement", "relative_gain"} if model == "graft" else set()
            assert set(measured) == common | extra
            assert 0 <= measured["accuracy"] <= 1
            assert 0 <= measured["ece"] <= 1
    graft = Graft.load(film / "graft.safetensors")
    region = metrics["region"]
    assert (region["size"], region["graftable"]) == (graft.size, graft.graftable)
    assert region["sparsity"] == graft.size / graft.graftable
    assert math.isclose(sum(region["layer"].values()), 1)
    assert math.isclose(sum(region["module"].values()), 1)


def test_predictions_give_the_metrics(film: Path) -> None:
    frame = pd.read_parquet(film / "predictions.parquet")
    metrics = files.read_json(film / "metrics.json")
    columns = ["p/negative", "p/positive"]
    assert frame[columns].sum(axis=1).sub(1).abs().max() < 1e-5
    for (model, split), part in frame.groupby(["model", "split"]):
        guess = part[columns].idxmax(axis=1).str.removeprefix("p/")
        assert (guess == part["label"]).mean() == pytest.approx(metrics[model][split]["accuracy"])


def test_graft_applied_to_a_fresh_model_gives_the_stored_predictions(film: Path) -> None:
    """By another road: transformers' own class and the file alone."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    from skillgraft.embedded import MODEL

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForMaskedLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    Graft.load(film / "graft.safetensors").apply(model)
    from skillgraft.tasks import loading

    rows = loading.load(expanded(*SMALL)).test[:10]
    frame = pd.read_parquet(film / "predictions.parquet")
    stored = frame[(frame.model == "graft") & (frame.split == "test")].head(10)
    words = tokenizer.convert_tokens_to_ids(["terrible", "great"])
    for row, expected in zip(rows, stored["p/positive"], strict=True):
        inputs = tokenizer(f"{row.text} it was {tokenizer.mask_token} .", return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[inputs["input_ids"] == tokenizer.mask_token_id]
        assert logits[0, words].softmax(0)[1].item() == pytest.approx(expected, abs=1e-5)


def test_provenance(film: Path) -> None:
    from skillgraft.embedded import MODEL
    from skillgraft.runtime.digests import file_digest

    facts = files.read_json(film / "provenance.json")
    assert facts["versions"]["torch"] == torch.__version__
    assert set(facts["digests"]) == {"data", "weights", "tokenizer"}
    assert facts["files"][str(MODEL / "model.safetensors")] == file_digest(
        MODEL / "model.safetensors"
    )
    whole = film.parent / ".finetuned" / facts["finetuned"]["name"]
    assert facts["finetuned"]["weights"] == file_digest(whole / "weights.safetensors")
    assert facts["seeds"]["data"] == derive(13, "data", "train")
    assert set(facts["seeds"]) == {"data", "model", "mask"}
    assert facts["flags"]["deterministic_algorithms"] is False  # a CPU needs no flag
    assert facts["device"]["name"] == "cpu"
    assert facts["threads"] == 1
    assert facts["peak_memory_mib"] > 100
    assert {"load", "finetune", "graft", "evaluate"} <= set(facts["seconds"])
    assert facts["attempts"] == 1
    assert not (film / "seconds.json").exists()


def test_flags_of_a_gpu_end_with_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a later run of the same process on the CPU would have them too, and say so."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = provenance.flags()
    with deterministic():
        assert provenance.flags() == before | {
            "deterministic_algorithms": True, "cublas_workspace": ":4096:8",
        }  # fmt: skip
    assert provenance.flags() == before
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic():
        assert provenance.flags()["cublas_workspace"] == ":16:8"
    assert provenance.flags()["cublas_workspace"] == ":16:8"


def test_fine_tuned_weights_hold_what_can_be_grafted_and_nothing_else(film: Path) -> None:
    (file,) = (film.parent / ".finetuned").glob("*/weights.safetensors")
    with safe_open(file, framework="numpy") as weights:
        assert set(weights.keys()) == set(Graft.load(film / "graft.safetensors").shapes)


def test_lightning_learns_the_region_that_localize_learns(tmp_path: Path) -> None:
    """The run's trainer against the plain loop: same rows, same scores, same schedule."""
    import numpy as np
    from safetensors.torch import load_file

    from skillgraft import localize
    from skillgraft.core import best_mask, layout, movement
    from skillgraft.evaluation import predict
    from skillgraft.models import checkpoint_files
    from skillgraft.models.pretrained import load_model, load_tokenizer
    from skillgraft.tasks import loading
    from skillgraft.tasks.batches import collate, in_batches
    from skillgraft.tasks.encoder import make_encoder

    options = (*SMALL, "graft.batch_size=4", "graft.steps=6", "graft.score_every=1", "graft.lr=3e9",
               "task.ood=[]", "logger=none")  # fmt: skip
    folder = make(tmp_path, *options)
    cfg = composed(*options)
    where = checkpoint_files.locate(cfg.model)
    tokenizer = load_tokenizer(where)
    pretrained, finetuned = (load_model(cfg, where, tokenizer) for _ in range(2))
    finetuned.restore(load_file(next((tmp_path / ".finetuned").iterdir()) / "weights.safetensors"))
    rows = loading.load(expanded(*options))
    encoder = make_encoder(cfg, tokenizer, 128)
    train, validation = encoder(rows.train), encoder(rows.validation)

    class Steps:  # a new order of the rows each step, as the run draws it
        step = 0

        def __iter__(self):
            random = np.random.default_rng(derive(cfg.seed, "mask", "rows", self.step))
            self.step += 1
            for group in in_batches(random.permutation(len(train)).tolist(), 4):
                yield collate([train[i] for i in group], tokenizer.pad_token_id)

    def score(module: torch.nn.Module) -> float:
        total = 0.0
        for examples in (train, validation):
            guess = predict.predict(module, examples, tokenizer.pad_token_id, 64).argmax(1)
            total += float(np.mean(guess == [e.label for e in examples]))
        return total

    batches = Steps()
    batches.step = -1  # localize asks once whether it can iterate again
    names = {f"model.bert.{name}" for name in pretrained.graftable}
    graft = localize(
        pretrained,
        finetuned,
        batches,
        lambda m, b: torch.nn.functional.cross_entropy(m(b), b["labels"]),
        sparsity=cfg.sparsity,
        steps=6,
        lr=3e9,
        graftable=lambda name, _: name in names,
        score=score,
        scores={
            f"model.bert.{name}": tensor
            for name, tensor in layout.FlatLayout.of(pretrained.graftable)
            .views(best_mask.initial_scores(793_088, cfg.seed))
            .items()
        },
    )
    learned = Graft.load(folder / "graft.safetensors")
    base = movement.base_region(dict(finetuned.graftable), dict(pretrained.graftable), 7931)
    assert not torch.equal(learned.region(), base), "nothing was learned"
    assert torch.equal(learned.region(), graft.region())


# ------------------------------------------------------------------------------- found again


def test_a_second_run_is_found(film: Path, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = (film / "status.json").stat().st_mtime_ns
    caplog.set_level("INFO")
    assert make(place, *SMALL) == film
    assert "already complete" in caplog.text
    assert (film / "status.json").stat().st_mtime_ns == before


def test_forced_run_gives_the_same_bits(film: Path, place: Path) -> None:
    names = ("metrics.json", "predictions.parquet", "graft.safetensors", "history.json")
    before = {name: (film / name).read_bytes() for name in names}
    stamp = (film / "status.json").stat().st_mtime_ns
    assert make(place, *SMALL, "force=true") == film
    assert (film / "status.json").stat().st_mtime_ns != stamp
    assert {name: (film / name).read_bytes() for name in names} == before


def test_another_store_gives_the_same_bits(film: Path, tmp_path: Path) -> None:
    """Fine-tuning included, with another global random state."""
    torch.manual_seed(12345)
    torch.rand(7)
    other = make(tmp_path / "elsewhere", *SMALL, "logger=none")
    assert other.name == film.name
    for name in ("metrics.json", "predictions.parquet", "graft.safetensors"):
        assert (other / name).read_bytes() == (film / name).read_bytes()


def test_finetuning_is_shared(film: Path, place: Path) -> None:
    """Another selector and sparsity take the weights from the store, and never fine-tune."""
    moved = make(place, *SIZED, "graft=movement", "sparsity=0.05", "logger=none")
    assert len(list((place / ".finetuned").iterdir())) == 1
    assert "finetune" not in files.read_json(moved / "provenance.json")["seconds"]
    ours, theirs = (files.read_json(f / "metrics.json") for f in (film, moved))
    assert ours["finetuned"] == theirs["finetuned"]
    assert ours["pretrained"] == theirs["pretrained"]


@pytest.mark.parametrize("selector", ["movement", "random"])
@pytest.mark.parametrize("sparsity", [0.0, 1e-7, 0.01, 1.0])
def test_sized_selectors_have_the_asked_size(
    place: Path, film: Path, selector: str, sparsity: float
) -> None:
    folder = make(place, *SIZED, f"graft={selector}", f"sparsity={sparsity}", "logger=none")
    metrics = files.read_json(folder / "metrics.json")
    region = metrics["region"]
    assert region["size"] == round(sparsity * region["graftable"])
    if region["size"] == 0:
        assert strip(metrics["graft"]) == metrics["pretrained"]
    if sparsity == 1:
        assert strip(metrics["graft"]) == metrics["finetuned"]


def strip(splits: dict) -> dict:
    extra = ("agreement", "relative_gain")
    return {s: {k: v for k, v in m.items() if k not in extra} for s, m in splits.items()}


def test_matched_size(place: Path, film: Path) -> None:
    size = files.read_json(film / "metrics.json")["region"]["size"]
    for match in ("learned", film.name, str(film)):
        folder = make(place, *SIZED, "graft=random", f"graft.size_from={match}", "logger=none")
        assert files.read_json(folder / "metrics.json")["region"]["size"] == size


def test_match_without_such_a_run(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"graft.size_from=learned: expected one complete run .* found none"
    ):
        make(tmp_path, *SIZED, "graft=random", "graft.size_from=learned", "logger=none")


# -------------------------------------------------------------------------------------- overlap


def test_overlap_with_the_runs_of_other_tasks(place: Path, film: Path) -> None:
    """Once with a peer, zero without; a run of another sparsity is no peer."""
    assert files.read_json(film / "overlap.json") == {}
    book = make(place, *SMALL, "task=toy_book")
    overlap = files.read_json(book / "overlap.json")
    assert list(overlap) == ["toy_film"]
    a, b = (Graft.load(f / "graft.safetensors") for f in (book, film))
    mine, theirs = set(a.region().tolist()), set(b.region().tolist())
    entry = overlap["toy_film"]
    assert entry["iou"] == pytest.approx(len(mine & theirs) / len(mine | theirs))
    assert entry["a_in_b"] == pytest.approx(len(mine & theirs) / len(mine))
    assert entry["b_in_a"] == pytest.approx(len(mine & theirs) / len(theirs))
    assert 0 < entry["chance"] < 0.01
    assert entry["run"] == film.name
    assert (book / "figures" / "overlap.png").is_file()
    summary = summary_of(book)["summary"]
    assert summary["overlap/toy_film/iou"] == entry["iou"]
    assert summary["overlap/n_compared"] == 1
    assert "overlap_map" in summary


# ------------------------------------------------------------------------------------------ W&B


def test_wandb_has_every_promised_key(film: Path) -> None:
    found = summary_of(film)
    summary, metrics = found["summary"], files.read_json(film / "metrics.json")
    for name, value in flatten(metrics).items():
        assert summary.get(name) == value, name
    assert summary["overlap/n_compared"] == 0
    assert {"reliability", "reliability_bins"} <= set(summary)
    assert found["config"]["sparsity"] == 0.01
    assert found["config"]["task"]["name"] == "toy_film"
    assert "store" not in found["config"]


def test_wandb_curves_and_identity(film: Path) -> None:
    text = records(film)
    for key in (
        "finetune/loss",
        "finetune/validation/accuracy",
        "mask/loss",
        "mask/objective",
        "mask/size",
    ):
        assert key in text
    for name in (film.name, film.name.rsplit("-seed", 1)[0], '"job_type":"run"', "learned"):
        assert name in text, name


def test_wandb_record_names_only_files_of_the_run(film: Path) -> None:
    """The graft is logged when the record is sent: no artifact, no absolute path, nothing outside."""
    told = [json.loads(line) for line in records(film).splitlines()]
    assert "artifact" not in {entry["type"] for entry in told}
    named = [f["path"] for e in told if e["type"] == "files" for f in e["files"]["files"]]
    (kept,) = film.glob("wandb/offline-run-*/files")
    assert any(name.startswith("media/table/") for name in named)
    for name in named:
        assert (kept / name).resolve() == kept.resolve() / name
        assert (kept / name).is_file()
    assert not (film.parent / ".wandb").exists()


def test_curves_are_replayed_from_the_cache(place: Path, film: Path) -> None:
    other = make(place, *SMALL, "sparsity=0.02")
    text = records(other)
    assert "finetune/loss" in text
    assert "finetune" not in files.read_json(other / "provenance.json")["seconds"]


# ---------------------------------------------------------------------------- the installed command


def test_command_from_another_directory(tmp_path: Path) -> None:
    """Two processes, two directories, one run; the second says so and is quick."""
    first = command(f"store={tmp_path}/runs", *SMALL, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    (tmp_path / "sub").mkdir()
    second = command("store=../runs", *SMALL, cwd=tmp_path / "sub")
    assert second.returncode == 0, second.stderr
    assert "already complete" in second.stdout + second.stderr
    runs = [p for p in (tmp_path / "runs").iterdir() if not p.name.startswith(".")]
    assert len(runs) == 1
    assert str(runs[0]) in first.stdout
    assert "agree-" in first.stdout
    assert (runs[0] / "hydra" / ".hydra" / "overrides.yaml").is_file()
    for text in (first.stderr, second.stderr):
        assert "Warning" not in text
    listed = command("list", str(tmp_path / "runs"), "--json", cwd=tmp_path, program="grafts")
    assert json.loads(listed.stdout)[0]["id"] == runs[0].name
    table = command("table", str(tmp_path / "runs"), cwd=tmp_path, program="grafts")
    assert "toy_film" in table.stdout
    shown = command("show", str(runs[0]), "--json", cwd=tmp_path, program="grafts")
    assert json.loads(shown.stdout)["task"] == "toy_film"
    assert command("verify", str(runs[0]), cwd=tmp_path, program="grafts").returncode == 0
    with (runs[0] / "metrics.json").open("a") as stream:
        stream.write(" ")
    assert command("verify", str(runs[0]), cwd=tmp_path, program="grafts").returncode == 1


def test_sweep_makes_one_wandb_run_a_job(tmp_path: Path) -> None:
    done = command(
        "-m", f"store={tmp_path}/runs", *SMALL, "sparsity=0.01,0.02", "task.ood=[]", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    runs = [p for p in (tmp_path / "runs").iterdir() if p.name.startswith("toy_film")]
    assert len(runs) == 2
    assert len({summary_of(run)["config"]["sparsity"] for run in runs}) == 2
    commands = [files.read_json(run / "provenance.json")["command"] for run in runs]
    own = [f"store={tmp_path}/runs", *SMALL]
    assert sorted(commands) == [
        ["skillgraft", *own, f"sparsity={size}", "task.ood=[]"] for size in ("0.01", "0.02")
    ]
    assert len(list((tmp_path / "runs" / ".finetuned").iterdir())) == 1


def test_own_task_from_csv_and_parquet(tmp_path: Path) -> None:
    from skillgraft.embedded import generator

    for split in ("train", "test"):
        frame = pd.DataFrame(generator.rows("toy_film", split)[:200])
        frame.rename(columns={"text": "review"}).to_csv(tmp_path / f"{split}.csv", index=False)
    pd.read_csv(tmp_path / "test.csv").to_parquet(tmp_path / "test.parquet")
    done = command(
        f"store={tmp_path}/runs", *SMALL, "task=custom", "task.name=mine", "task.train=train.csv",
        "task.test=test.parquet", "task.columns.text=review",
        "task.template='*text* it was *mask* .'", "task.verbalizer=[terrible,great]",
        "task.labels=[negative,positive]", "logger=none", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "runs").glob("mine-tiny-learned-*"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("sparsityy=0.1",), ["sparsityy", "sparsity"]),
        (("sparsity=2",), ["sparsity=2", "from 0 to 1"]),
        (("task=sst2", "data_dir=nowhere"), ["data_dir=", "nowhere"]),
        (("task.verbalizer.positive=unheardof",), ["unheardof", "not one token"]),
        (("task.template='no slot'",), ["task.template", "*mask*"]),
        (("trainer=gpu",), ["trainer.accelerator=gpu"]),
        (("model=hub", "model.path=./nowhere"), ["model.path", "nowhere"]),
        (("graft=layer", "graft.layer=99"), ["graft.layer=99", "0, 1"]),
        (("graft=file", "graft.paths=[nowhere]"), ["graft.paths: nowhere", "found none"]),
        (("continual.tasks=[toy_topic,toy_film]",), ["continual.tasks", "the stage toy_topic"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    tmp_path: Path, overrides: tuple[str, ...], words: list[str]
) -> None:
    if "trainer=gpu" in overrides and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = command(*overrides, f"store={tmp_path}/runs", "logger=none", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    said = done.stderr.strip().splitlines()
    assert len(said) == 1, done.stderr
    for word in words:
        assert word in said[0]


def test_traceback_on_request(tmp_path: Path) -> None:
    done = command(
        "hydra.verbose=true", "task=sst2", "data_dir=nowhere", f"store={tmp_path}", cwd=tmp_path
    )
    assert done.returncode != 0
    assert "Traceback" in done.stdout
    assert "Traceback" not in done.stderr
    assert "nowhere" in done.stderr


# ------------------------------------------------------------------------- what can go wrong later


def test_diverged_finetuning_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"fine-tuning diverged by step \d+: lower finetune.lr"):
        make(
            tmp_path,
            *SMALL,
            "finetune.lr=1e30",
            "finetune.gradient_clip_val=0",
            "task.ood=[]",
            "logger=none",
        )


def test_names_that_would_leave_the_store(tmp_path: Path) -> None:
    for name in ("a/b", "..", ".hidden"):
        with pytest.raises(InputError, match=r"model.name"):
            make(tmp_path, *SMALL, f"model.name={name}", "logger=none")


def test_options_that_a_selector_never_reads_are_not_in_its_name(place: Path, film: Path) -> None:
    plainly = make(place, *SIZED, "graft=movement", "logger=none")
    assert (
        make(place, *SMALL, "graft=movement", "finetune.feature_norm=3", "logger=none") == plainly
    )


def test_table_keeps_settings_apart(tmp_path: Path) -> None:
    """Two learning rates are two rows with one seed each, two seeds one row with n = 2."""
    from skillgraft.analysis import collect, tables

    short = (*SIZED, "graft=movement", "task.ood=[]", "logger=none")
    make(tmp_path, *short)
    make(tmp_path, *short, "finetune.lr=0.01")
    make(tmp_path, *short, "seed=21")
    table = tables.over_seeds(collect.collect(folders.Store(tmp_path)), ["graft/test/accuracy"])
    assert sorted(table["n"]) == [1, 2]


def test_run_that_a_kill_left_aside_is_put_back(tmp_path: Path) -> None:
    """As SIGKILL between the two renames of force=true leaves it."""
    options = (*SIZED, "graft=movement", "task.ood=[]", "logger=none")
    folder = make(tmp_path, *options)
    stamp = (folder / "status.json").stat().st_mtime_ns
    folder.rename(tmp_path / ".partial" / f"{folder.name}.old")
    assert make(tmp_path, *options) == folder
    assert (folder / "status.json").stat().st_mtime_ns == stamp


def test_error_of_a_row_keeps_its_place_in_a_sweep(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"text": "fine", "label": 0}\n{broken\n')
    done = command(
        "-m", f"store={tmp_path}/runs", "task=custom", "task.name=mine", "task.train=train.jsonl",
        "task.test=test.jsonl", "task.template='*text* it was *mask* .'",
        "task.verbalizer=[terrible,great]", "task.labels=[negative,positive]", "seed=1,2",
        "logger=none", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "train.jsonl, row 2: not JSON" in done.stderr


def test_a_model_that_cannot_be_compiled_is_one_line(tmp_path: Path, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("No working C++ compiler found\nand a long story")

    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **_: self.register_forward_pre_hook(broken)
    )
    refused(tmp_path, ["trainer.compile=true", "compiler"], *TINY, "trainer.compile=true")


@pytest.mark.long
def test_a_compiled_model_gives_the_same_within_rounding(tmp_path: Path) -> None:
    plain = make(tmp_path, *SMALL, "logger=none", "task.ood=[]")
    line = ("trainer.compile=true", f"store={tmp_path}", *SMALL, "logger=none", "task.ood=[]")
    done = command(
        *line, cwd=tmp_path
    )  # in its own process: warnings of the compiler's are its own
    assert done.returncode == 0, done.stderr
    (other,) = (f for f in tmp_path.glob("toy_film-*") if f != plain)
    one, two = (
        json.loads((folder / "metrics.json").read_text())["finetuned"]["test"]["nll"]
        for folder in (plain, other)
    )
    assert one == pytest.approx(two, abs=1e-4)
