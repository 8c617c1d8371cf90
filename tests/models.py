"""Tiny random checkpoints and their tokenizers, written to disk as a hub would have them."""

from __future__ import annotations

import functools
import json
import string
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
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
CAUSAL = {  # families of causal LMs, with the tokenizer of each
    "gpt2": "gpt2",
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen2",
    "opt": "opt",
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


def byte_pairs(*specials: str) -> tuple[dict[str, int], list[tuple[str, ...]]]:
    """A vocabulary and merges over bytes, in which every known word is one token after a space."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([f"so {word}" for word in words() for _ in range(9)], trainer)
    model = json.loads(core.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def byte_level() -> PreTrainedTokenizerBase:
    """The mask token takes the space before it, as in RoBERTa's own tokenizer."""
    vocab, merges = byte_pairs("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    mask = AddedToken("<mask>", lstrip=True, special=True)
    return transformers.RobertaTokenizer(vocab=vocab, merges=merges, mask_token=mask)


def gpt2() -> PreTrainedTokenizerBase:
    """Neither a token for padding nor one before a text."""
    vocab, merges = byte_pairs("<|endoftext|>")
    return transformers.GPT2Tokenizer(vocab=vocab, merges=merges)


def qwen2() -> PreTrainedTokenizerBase:
    vocab, merges = byte_pairs("<|endoftext|>")
    return transformers.Qwen2Tokenizer(vocab=vocab, merges=merges)


def opt() -> PreTrainedTokenizerBase:
    """GPT-2's with </s> before every text."""
    vocab, merges = byte_pairs("<s>", "<pad>", "</s>", "<unk>")
    names = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    return transformers.GPT2Tokenizer(vocab=vocab, merges=merges, add_bos_token=True, **names)


def pieces() -> Tokenizer:
    """Byte pairs over characters, with SentencePiece's ▁ for the space."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=["▁", *LETTERS],
        show_progress=False,
    )
    core.train_from_iterator([f"so {word}" for word in words() for _ in range(9)], trainer)
    return core


def llama() -> PreTrainedTokenizerBase:
    model = json.loads(pieces().to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return transformers.LlamaTokenizer(vocab=model["vocab"], merges=merges, add_bos_token=True)


def llama_2() -> PreTrainedTokenizerBase:
    """As in older tokenizer files: a ▁ is put before any text, also one that begins with a space."""
    core = pieces()
    space = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    core.normalizer, core.pre_tokenizer = normalizers.Sequence(space), None
    core.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **names)


def unigram() -> PreTrainedTokenizerBase:
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "▁"]
    pieces += sorted({f"▁{word}" for word in words()} | set(LETTERS))
    vocab = [(piece, -1.0 if len(piece) > 1 else -9.0) for piece in pieces]
    return transformers.DebertaV2Tokenizer(vocab, unk_id=3)


@functools.cache
def tokenizer(kind: str) -> PreTrainedTokenizerBase:
    encoders = {"wordpiece": wordpiece, "bytes": byte_level, "unigram": unigram}
    causal = {"gpt2": gpt2, "qwen2": qwen2, "opt": opt, "llama": llama, "llama_2": llama_2}
    return (encoders | causal)[kind]()


def causal_config(family: str, **changes: Any) -> transformers.PreTrainedConfig:
    vocab = tokenizer(CAUSAL[family])
    shared = {"vocab_size": len(vocab), "bos_token_id": vocab.bos_token_id}
    shared |= {"eos_token_id": vocab.eos_token_id, "pad_token_id": vocab.pad_token_id}
    if family == "gpt2":
        own = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS}
        return transformers.GPT2Config(**(shared | own | changes))
    sizes = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": POSITIONS,
    }
    if family == "opt":  # as facebook/opt-350m, whose words are narrower than its blocks
        own = {"ffn_dim": 2 * HIDDEN, "word_embed_proj_dim": HIDDEN // 2}
        return transformers.OPTConfig(**(shared | sizes | own | changes))
    sizes |= {"intermediate_size": 2 * HIDDEN, "num_key_value_heads": 1}
    if family == "llama":  # its LM head is a matrix of its own
        return transformers.LlamaConfig(**(shared | sizes | changes))
    sizes |= {"tie_word_embeddings": True}
    if family == "qwen2":
        return transformers.Qwen2Config(**(shared | sizes | changes))
    return transformers.Qwen3Config(**(shared | sizes | {"head_dim": HIDDEN // HEADS} | changes))


def config(family: str, **changes: Any) -> transformers.PreTrainedConfig:
    if family in CAUSAL:
        return causal_config(family, **changes)
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
    """Write a random masked or causal LM, or with `head=False` it without, and its tokenizer."""
    lm = transformers.AutoModelForMaskedLM
    if family in CAUSAL:
        lm = transformers.AutoModelForCausalLM
    kind = lm if head else transformers.AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.from_config(config(family, **changes))
        spread(model)
    model.to(dtype).save_pretrained(folder)
    tokenizer((TOKENIZERS | CAUSAL)[family]).save_pretrained(folder)
    return folder


def spread(model: PreTrainedModel) -> None:
    """Make every parameter matter: fresh weights are so small, and biases 0, that errors hide."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
