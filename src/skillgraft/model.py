"""The adapter: a pre-trained model that yields class logits, and what of it can be grafted."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from skillgraft.checkpoint import tokenizer_files
from skillgraft.config import Kind, Pool, RunConfig
from skillgraft.errors import InputError
from skillgraft.prompt import Batch, words_to_ids
from skillgraft.seeds import derive

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Classifier(nn.Module):
    """A transformers model whose output is (B, classes) logits, by prompt or by a linear head."""

    def __init__(
        self,
        model: PreTrainedModel,
        graftable: Iterable[str],
        *,
        words: list[int] | None = None,
        head: nn.Linear | None = None,
        pool: Pool | None = None,
        norm: float | None = None,
    ) -> None:
        super().__init__()
        self.model, self.head, self.pool, self.norm = model, head, pool, norm
        try:
            patterns = [re.compile(pattern) for pattern in graftable]
        except re.error as error:
            raise InputError(f"model.graftable: not a regular expression ({error})") from error
        prefix = f"{model.base_model_prefix}."
        # Graft files name parameters without the base model's prefix: one file fits every class.
        self.graftable = {
            name.removeprefix(prefix): parameter
            for name, parameter in model.named_parameters()
            if any(pattern.search(name) for pattern in patterns)
        }
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in self.graftable.values():
            parameter.requires_grad_(True)
        # by signature: transformers wraps forward, and a wrapper has other names
        self.types = "token_type_ids" in inspect.signature(model.forward).parameters
        if words is not None:
            self.register_buffer("words", torch.tensor(words), persistent=False)
            self._position: Tensor | None = None
            model.base_model.register_forward_hook(self._keep_mask_only)

    def _keep_mask_only(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Cut the encoder's output to the mask's hidden state: the LM head then costs B × V."""
        hidden, rows = output["last_hidden_state"], torch.arange(len(output["last_hidden_state"]))
        output["last_hidden_state"] = hidden[rows.to(hidden.device), self._position].unsqueeze(1)
        return output

    def forward(self, batch: Batch) -> Tensor:
        """Return (B, classes) logits in fp32."""
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        if self.types:
            inputs["token_type_ids"] = batch["token_type_ids"]
        if self.head is None:
            self._position = batch["mask_position"]
            words = batch.get("words", self.words)  # a batch of another task brings its own
            return self.model(**inputs).logits[:, 0].index_select(1, words).float()
        hidden = self.model(**inputs).last_hidden_state  # (B, T, H)
        return self.head(self._pooled(hidden, batch).to(self.head.weight.dtype)).float()

    def _pooled(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Return the (B, H) features that the head reads, scaled to the norm asked for."""
        if self.pool is Pool.mean:
            weight = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            features = (hidden * weight).sum(1) / weight.sum(1)
        else:  # without a template the mask's position is 0, the first token
            features = hidden[
                torch.arange(len(hidden), device=hidden.device), batch["mask_position"]
            ]
        if self.norm is None:
            return features
        return nn.functional.normalize(features, dim=-1) * self.norm

    def trained(self) -> dict[str, Tensor]:
        """Return what fine-tuning changes, by name: graftable tensors, then `head.weight`, `head.bias`."""
        tensors = {name: p.data for name, p in self.graftable.items()}
        if self.head is not None:
            tensors |= {f"head.{name}": p.data for name, p in self.head.named_parameters()}
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Copy stored tensors, named as `trained` names them, into the model."""
        with torch.no_grad():
            for name, target in self.trained().items():
                target.copy_(tensors[name])


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model's folder."""
    from transformers import AutoTokenizer

    if not tokenizer_files(folder):
        raise InputError(f"model.path={folder}: no tokenizer (no tokenizer.json or the like)")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"model.path={folder}: no tokenizer ({str(error).splitlines()[0]})"
        ) from error


def load_model(cfg: RunConfig, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Classifier:
    """Return the pre-trained model as a classifier, in fp32 and in evaluation mode."""
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoModelForMaskedLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    prompted = cfg.finetune.kind is Kind.prompt
    kind = AutoModelForMaskedLM if prompted else AutoModel
    try:
        model, info = kind.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation=cfg.model.attention,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        key = f"model.path={folder}"
        if re.search("attn_implementation|attention implementation|FlashAttention", reason):
            key = f"model.attention={cfg.model.attention} (eager fits every model): {key}"
        raise InputError(f"{key}: {reason}") from error
    check_missing(cfg, info["missing_keys"])
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # never read here, and often not in the checkpoint
    words = words_to_ids(cfg.task, tokenizer) if prompted else None
    head = None if prompted else new_head(model.config.hidden_size, len(cfg.task.labels), cfg.seed)
    classifier = Classifier(
        model,
        cfg.model.graftable,
        words=words,
        head=head,
        pool=cfg.finetune.pool,
        norm=cfg.finetune.norm,
    )
    if not classifier.graftable:
        some = ", ".join(name for name, _ in list(model.named_parameters())[:5])
        raise InputError(
            f"model.graftable={list(cfg.model.graftable)}: no parameter of {cfg.model.name} matches "
            f"(it has {some}, …)"
        )
    return classifier.eval()


def check_missing(cfg: RunConfig, missing: Iterable[str]) -> None:
    """Raise InputError where weights that the run needs are not in the checkpoint."""
    names = sorted(name for name in missing if not re.search(r"(^|\.)pooler\.", name))
    if not names:
        return
    shown = ", ".join(names[:4]) + (f", … ({len(names)} in all)" if len(names) > 4 else "")
    hint = ""
    if cfg.finetune.kind is Kind.prompt:
        hint = "; a prompt needs a masked LM with its head: for an encoder use finetune=linear"
    raise InputError(f"model {cfg.model.name}: the checkpoint lacks {shown}{hint}")


def new_head(hidden: int, classes: int, seed: int) -> nn.Linear:
    """Return a linear head with normal(0, 0.02) weights and zero biases, drawn from the model's seed."""
    head = nn.utils.skip_init(nn.Linear, hidden, classes)
    generator = torch.Generator().manual_seed(derive(seed, "model", "head"))
    with torch.no_grad():
        head.weight.normal_(0, 0.02, generator=generator)
        head.bias.zero_()
    return head


def longest_input(model: Classifier) -> int:
    """Return how many tokens the model's positions allow."""
    config = model.model.config
    limit = getattr(config, "max_position_embeddings", None) or 2**31
    # RoBERTa's positions start behind the padding index.
    offset = (
        config.pad_token_id + 1
        if config.model_type in ("roberta", "xlm-roberta", "camembert")
        else 0
    )
    return limit - offset
