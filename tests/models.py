"""Tiny random checkpoints and their tokenizers, written to disk as a hub would have them."""

from __future__ import annotations

import functools
import json
import string
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

WORDS = ("terrible", "great", "Yes", "No", "Maybe", "World", "Tech")  # of the verbalizers
SENTENCES = (
    "A warm and funny film with a great cast.",
    "It was terrible from the first scene to the last.",
    "The people of the world are great readers.",
    "What is the number of people in the city?",
    "This is a subjective review of a new tech gadget.",
)
LETTERS = string.ascii_letters + string.digits + string.punctuation

HIDDEN, HEADS, LAYERS, POSITIONS = 16, 2, 2, 48
FAMILIES = ("bert", "roberta", "distilbert", "electra", "deberta")
TOKENIZERS = {  # what each family's checkpoints come with
    "bert": "wordpiece",
    "roberta": "bytes",
    "distilbert": "wordpiece",
    "electra": "wordpiece",
    "deberta": "unigram",
}


def words() -> list[str]:
    text = " ".join((*SENTENCES, *WORDS))
    return sorted({word.strip(".?,:") for word in text.split()})


def wordpiece() -> PreTrainedTokenizerBase:
    lower = sorted({word.lower() for word in words()} - set(LETTERS))
    letters = sorted(set(LETTERS.lower()))
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *lower, *letters]
    vocab += [f"##{letter}" for letter in letters]
    return transformers.BertTokenizer({piece: i for i, piece in enumerate(vocab)})


def byte_level() -> PreTrainedTokenizerBase:
    """The mask token takes the space before it, as in RoBERTa's own tokenizer."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([f"so {word}" for word in words() for _ in range(9)], trainer)
    model = json.loads(core.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    mask = AddedToken("<mask>", lstrip=True, special=True)
    return transformers.RobertaTokenizer(vocab=model["vocab"], merges=merges, mask_token=mask)


def unigram() -> PreTrainedTokenizerBase:
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "▁"]
    pieces += sorted({f"▁{word}" for word in words()} | set(LETTERS))
    vocab = [(piece, -1.0 if len(piece) > 1 else -9.0) for piece in pieces]
    return transformers.DebertaV2Tokenizer(vocab, unk_id=3)


@functools.cache
def tokenizer(kind: str) -> PreTrainedTokenizerBase:
    return {"wordpiece": wordpiece, "bytes": byte_level, "unigram": unigram}[kind]()


def config(family: str, **changes: Any) -> transformers.PreTrainedConfig:
    vocab = tokenizer(TOKENIZERS[family])
    shared = {"vocab_size": len(vocab), "pad_token_id": vocab.pad_token_id}
    sizes = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 2 * HIDDEN,
        "max_position_embeddings": POSITIONS,
    }
    if family == "distilbert":
        own = {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 2 * HIDDEN}
        own["max_position_embeddings"] = POSITIONS
        return transformers.DistilBertConfig(**shared, **(own | changes))
    if family == "roberta":
        sizes["type_vocab_size"] = 1
        sizes["max_position_embeddings"] = POSITIONS + vocab.pad_token_id + 1
        return transformers.RobertaConfig(**shared, **(sizes | changes))
    if family == "electra":
        sizes["embedding_size"] = HIDDEN // 2
        return transformers.ElectraConfig(**shared, **(sizes | changes))
    if family == "deberta":  # as microsoft/deberta-v3-base
        sizes |= {
            "relative_attention": True,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
        }
        return transformers.DebertaV2Config(**shared, **(sizes | changes))
    return transformers.BertConfig(**shared, **(sizes | changes))


def checkpoint(
    folder: Path,
    family: str = "bert",
    *,
    head: bool = True,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Write a random masked LM, or with `head=False` its encoder alone, and its tokenizer."""
    kind = transformers.AutoModelForMaskedLM if head else transformers.AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.from_config(config(family, **changes))
        spread(model)
    model.to(dtype).save_pretrained(folder)
    tokenizer(TOKENIZERS[family]).save_pretrained(folder)
    return folder


def spread(model: PreTrainedModel) -> None:
    """Make every parameter matter: fresh weights are so small, and biases 0, that errors hide."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
