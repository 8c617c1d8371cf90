"""Load the tokenizer, the configuration and the pre-trained model from files."""

from __future__ import annotations

import importlib.util
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from skillgraft.config.choices import Kind
from skillgraft.config.schema import RunConfig
from skillgraft.models.checkpoint_files import gguf_file, tokenizer_files
from skillgraft.models.classifier import Classifier, new_head
from skillgraft.models.families import check_kind, is_causal
from skillgraft.runtime.errors import InputError, reason
from skillgraft.tasks.tokens import words_to_ids

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# The errors that transformers raises for files that it cannot read. struct.error and IndexError come from
# truncated GGUF files.
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    ImportError,
    IndexError,
    SafetensorError,
    struct.error,
)


def source(path: Path) -> tuple[Path, dict[str, str]]:
    """Return the folder, and the keyword arguments for GGUF files, that from_pretrained needs for a model."""
    file = gguf_file(path)
    if file is None:
        return path, {}
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"model.path={path}: a GGUF file needs {' and '.join(missing)}: "
            'pip install "skillgraft[gguf]"'
        )
    return file.parent, {"gguf_file": file.name}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model's folder or GGUF file; raises InputError where there is none."""
    from transformers import AutoTokenizer

    if not tokenizer_files(folder):
        raise InputError(f"model.path={folder}: no tokenizer (no tokenizer.json or the like)")
    place, more = source(folder)
    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False, **more)
    except UNREADABLE as error:
        raise InputError(f"model.path={folder}: no tokenizer ({reason(error)})") from error


def load_config(folder: Path) -> PreTrainedConfig:
    """Return the transformers configuration of a model's folder or GGUF file."""
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    place, more = source(folder)
    try:
        return AutoConfig.from_pretrained(place, trust_remote_code=False, **more)
    except UNREADABLE as error:
        raise InputError(f"model.path={folder}: {reason(error)}") from error


def load_pretrained(
    kind: Kind, folder: Path, config: PreTrainedConfig, attention: str = "sdpa"
) -> tuple[PreTrainedModel, list[str]]:
    """Return the transformers model for a kind of fine-tuning, in fp32, and the names of missing weights."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

    kinds = {Kind.prompt: AutoModelForMaskedLM, Kind.autoregressive: AutoModelForCausalLM}
    place, more = source(folder)
    try:
        model, info = kinds.get(kind, AutoModel).from_pretrained(
            place,
            **more,
            config=config,
            dtype=torch.float32,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except UNREADABLE as error:
        key = f"model.path={folder}"
        said = reason(error)
        if re.search("attn_implementation|attention implementation|FlashAttention", said):
            key = f"model.attention={attention} (eager fits every model): {key}"
        raise InputError(f"{key}: {said}") from error
    return model, info["missing_keys"]


def load_model(cfg: RunConfig, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Classifier:
    """Return the pre-trained model as a classifier, in fp32 and in evaluation mode."""
    prompted = cfg.finetune.kind is not Kind.linear
    config = load_config(folder)
    check_kind(cfg, folder, config)
    model: Any
    model, missing = load_pretrained(cfg.finetune.kind, folder, config, cfg.model.attention)
    check_missing(cfg, missing)
    if getattr(model, "pooler", None) is not None:
        # never read here, and often absent from the checkpoint (the authors' code fails on its missing
        # gradient where the head is trained)
        model.pooler = None
    if is_causal(config):
        model.config.use_cache = False  # of keys and values: no text is generated
    words = words_to_ids(cfg.task, tokenizer) if prompted else None
    # OPT-350m projects its last hidden states (1024) to the width of its word embeddings (512)
    width = getattr(model.config, "word_embed_proj_dim", model.config.hidden_size)
    head = None if prompted else new_head(width, len(cfg.task.labels), cfg.seed)
    classifier = Classifier(
        model,
        cfg.model.graftable,
        words=words,
        head=head,
        pool=cfg.finetune.pool,
        norm=cfg.finetune.feature_norm,
        causal=cfg.finetune.kind is Kind.autoregressive,
    )
    if not classifier.graftable:
        some = ", ".join(name for name, _ in list(model.named_parameters())[:5])
        hint = "; for a causal LM: model.graftable='${model.blocks.autoregressive}'"
        raise InputError(
            f"model.graftable={list(cfg.model.graftable)}: no parameter of {cfg.model.name} matches "
            f"(it has {some}, …){hint if is_causal(config) else ''}"
        )
    return classifier.eval()


def check_missing(cfg: RunConfig, missing: Iterable[str]) -> None:
    """Raise InputError where the checkpoint lacks weights that the run needs.

    transformers would initialize missing weights at random, with no more than a warning.
    """
    names = sorted(name for name in missing if not re.search(r"(^|\.)pooler\.", name))
    if not names:
        return
    shown = ", ".join(names[:4]) + (f", … ({len(names)} in all)" if len(names) > 4 else "")
    hint = ""
    if cfg.finetune.kind is Kind.prompt:
        hint = "; a prompt needs a masked LM with its head: for an encoder use finetune=linear"
    raise InputError(f"model {cfg.model.name}: the checkpoint lacks {shown}{hint}")
