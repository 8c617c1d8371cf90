"""Properties of a model's family: causal or not, the longest input, the kinds of fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from skillgraft.config.choices import Kind, Pool
from skillgraft.config.schema import RunConfig
from skillgraft.models.classifier import Classifier
from skillgraft.runtime.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def is_causal(config: PreTrainedConfig) -> bool:
    """Return whether a model reads from left to right only.

    Such a family has a causal LM class and no masked LM class in transformers; BERT and RoBERTa have both.
    """
    from transformers.models.auto import modeling_auto as auto

    return (
        config.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and config.model_type not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )


def check_kind(cfg: RunConfig, folder: Path, config: PreTrainedConfig) -> None:
    """Raise InputError, naming the kinds that fit, where the requested kind of fine-tuning does not fit."""
    kind, pool, causal = cfg.finetune.kind, cfg.finetune.pool, is_causal(config)
    if (kind is Kind.autoregressive or (kind is Kind.linear and pool is Pool.last)) == causal:
        return
    asked = f"finetune.kind={kind.value}" + (
        f" finetune.pool={pool}" if kind is Kind.linear else ""
    )
    what, fit = (
        ("a causal LM", "finetune=autoregressive, or finetune=linear finetune.pool=last")
        if causal
        else ("no causal LM", "finetune=prompt, or finetune=linear finetune.pool=mean")
    )
    raise InputError(f"{asked}: model.path={folder} is {what} ({config.model_type}): use {fit}")


def longest_input(model: Classifier) -> int:
    """Return the largest number of tokens that the model has positions for."""
    config = model.model.config
    limit = getattr(config, "max_position_embeddings", None) or 2**31
    # RoBERTa numbers positions from the padding index + 1: 512 tokens of 514 positions.
    offset = (
        config.pad_token_id + 1
        if config.model_type in ("roberta", "xlm-roberta", "camembert")
        else 0
    )
    return limit - offset
