"""The embedded suite: its rows, its task files, and the model that ships with it."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForMaskedLM, AutoTokenizer

from skillgraft.config.compose import task_parts
from skillgraft.embedded import MODEL, pretrain
from skillgraft.embedded.generator import LABELS, SIZES, TASKS, corpus, rows

CONF = Path(__file__).parents[1] / "conf" / "task"
CONFIGS = {
    path.stem: OmegaConf.merge(*(part for _, part in task_parts(path.stem, [CONF.parent])))
    for path in CONF.glob("toy_*.yaml")
}
ROWS_SHA256 = "f184acb704a946163bd64b256ae3fcac097dee01346b9df3de2b0dcf2274ce97"
CORPUS_SHA256 = "fd22a18251a513e41b3918ab2427d7361e8dbaba1e904dc54c7ef3b12526b6e6"
MAIN = [name for name, config in CONFIGS.items() if config["ood"]]


def texts(task: str, split: str) -> list[str]:
    return [" ".join(v for k, v in row.items() if k != "label") for row in rows(task, split)]


def digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():
    return AutoModelForMaskedLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def prompts(task: str, mask: str) -> list[str]:
    template = CONFIGS[task]["template"].replace("*mask*", mask)

    def fill(row: dict[str, str]) -> str:
        if "text" in row:
            return template.replace("*text*", row["text"])
        a = re.sub(r"[.?!]$", "", row["text_a"])
        return template.replace("*a*", a).replace("*b*", row["text_b"])

    return [fill(row) for row in rows(task, "test")]


def test_every_task_has_a_config_and_every_config_a_task():
    assert set(CONFIGS) == set(TASKS)
    for name, config in CONFIGS.items():
        assert config["name"] == name
        assert tuple(config["labels"]) == LABELS[name]
        assert set(config["verbalizer"]) == set(LABELS[name])
        assert set(config["ood"]) <= set(TASKS)
        assert all(LABELS[other] == LABELS[name] for other in config["ood"])


def test_rows_are_the_same_on_every_machine():
    assert digest([rows(task, "test") for task in TASKS]) == ROWS_SHA256
    assert digest(list(corpus(1000))) == CORPUS_SHA256


@pytest.mark.parametrize("task", MAIN)
def test_splits_share_no_text(task):
    splits = {split: texts(task, split) for split in SIZES}
    assert {split: len(told) for split, told in splits.items()} == SIZES
    shifted = [other for other in CONFIGS[task]["ood"] if other.startswith(f"{task}_")]
    everything = [text for told in splits.values() for text in told]
    everything += [text for other in shifted for text in texts(other, "test")]
    assert len(set(everything)) == len(everything)


def test_corpus_holds_no_test_text():
    def words(text: str) -> str:
        return f" {' '.join(re.findall(r'[a-z]+', text))} "

    held_out = [words(row["text"]) for task in TASKS for row in rows(task, "test") if "text" in row]
    documents = "|".join(words(document) for document in corpus(3000))
    assert not [text for text in held_out if text in documents]


@pytest.mark.parametrize("task", TASKS)
def test_labels_are_balanced(task):
    counts = Counter(row["label"] for row in rows(task, "test"))
    assert set(counts) == set(LABELS[task])
    assert max(counts.values()) < 1.2 * min(counts.values())


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match="task='toy'"):
        rows("toy", "test")
    with pytest.raises(ValueError, match="split='train' of task toy_film_slang"):
        rows("toy_film_slang", "train")


@pytest.mark.parametrize("task", TASKS)
def test_every_word_is_one_known_token(task, tokenizer):
    for word in CONFIGS[task]["verbalizer"].values():
        assert tokenizer.tokenize(word) == [word]
        assert tokenizer.convert_tokens_to_ids(word) != tokenizer.unk_token_id
    encoded = tokenizer(prompts(task, tokenizer.mask_token))["input_ids"]
    assert not any(tokenizer.unk_token_id in ids for ids in encoded)
    assert max(map(len, encoded)) <= CONFIGS[task]["max_length"]


def test_shipped_folder_is_small():
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < 2.5e6


@pytest.mark.parametrize("task", MAIN)
def test_pretrained_model_is_above_chance(task, tokenizer, model):
    config = CONFIGS[task]
    words = tokenizer.convert_tokens_to_ids([config["verbalizer"][x] for x in config["labels"]])
    batch = tokenizer(prompts(task, tokenizer.mask_token), padding=True, return_tensors="pt")
    at_mask = batch["input_ids"] == tokenizer.mask_token_id
    with torch.no_grad():
        hidden = model.bert(**batch).last_hidden_state[at_mask]  # (rows, hidden)
        guesses = model.cls(hidden)[:, words].argmax(-1)
    labels = torch.tensor([config["labels"].index(row["label"]) for row in rows(task, "test")])
    accuracy = (guesses == labels).float().mean().item()
    assert 1 / len(words) + 0.05 < accuracy < 0.85


def written_config(folder: Path) -> dict:
    """What a folder's config.json says of its model; transformers adds its own version to it."""
    content = json.loads((folder / "config.json").read_text())
    del content["transformers_version"]
    return content


def test_two_rebuilds_write_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        torch.rand(1)  # a run must not depend on the generator that it finds
        pretrain.pretrain(tmp_path / name, steps=3)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (MODEL / name).read_bytes()
    assert written_config(tmp_path / "one") == written_config(MODEL)
