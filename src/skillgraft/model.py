"""The adapter: a pre-trained model that yields class logits, and what of it can be grafted."""

from __future__ import annotations

import importlib.util
import inspect
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from skillgraft.checkpoint import gguf_file, tokenizer_files
from skillgraft.config import Kind, Pool, RunConfig
from skillgraft.errors import InputError, reason
from skillgraft.prompt import Batch, to_device, words_to_ids
from skillgraft.seeds import derive

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# What transformers raises over files that it cannot read; struct.error and IndexError for cut GGUF files.
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


class Classifier(nn.Module):
    """A transformers model whose output is (B, classes) logits, by prompt or by a linear head.

    The LM head of a masked LM is read at the mask, with `causal` that of a causal LM at the last token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        graftable: Iterable[str],
        *,
        words: list[int] | None = None,
        head: nn.Linear | None = None,
        pool: Pool | None = None,
        norm: float | None = None,
        causal: bool = False,
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
        # by signature: transformers wraps forward, and a wrapper has other names. A model without
        # types of its own may take them all the same: GPT-2 looks them up among its words.
        self.types = bool(getattr(model.config, "type_vocab_size", 0)) and (
            "token_type_ids" in inspect.signature(model.forward).parameters
        )
        if words is not None:
            self.register_buffer("words", torch.tensor(words), persistent=False)
            self._position: Tensor | None = None
            if causal:  # OPT's LM class goes past its base model
                model.get_output_embeddings().register_forward_pre_hook(self._keep_last_only)
            else:
                model.base_model.register_forward_hook(self._keep_mask_only)

    def _keep_mask_only(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Cut the encoder's output to the mask's hidden state: the LM head then costs B × V."""
        output["last_hidden_state"] = self._at_position(output["last_hidden_state"])
        return output

    def _keep_last_only(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Cut the LM head's input to the last token's hidden state."""
        return (self._at_position(args[0]),)

    def _at_position(self, hidden: Tensor) -> Tensor:
        """Return (B, 1, H), of (B, T, H) the state of each row at its own position."""
        rows = torch.arange(len(hidden), device=hidden.device)
        return hidden[rows, self._position].unsqueeze(1)

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

    @contextmanager
    def fixed_head(self) -> Iterator[None]:
        """Compute no gradient for a new head inside a `with` block: it is not graftable."""
        parameters = [] if self.head is None else list(self.head.parameters())
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)

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


def source(path: Path) -> tuple[Path, dict[str, str]]:
    """Return the folder and the further arguments by which transformers reads a model."""
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
    """Return the tokenizer of a model's folder or GGUF file."""
    from transformers import AutoTokenizer

    if not tokenizer_files(folder):
        raise InputError(f"model.path={folder}: no tokenizer (no tokenizer.json or the like)")
    place, more = source(folder)
    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False, **more)
    except UNREADABLE as error:
        raise InputError(f"model.path={folder}: no tokenizer ({reason(error)})") from error


def load_config(folder: Path) -> PreTrainedConfig:
    """Return what the files of a model say of its kind and sizes."""
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
    """Return the transformers model that a kind of fine-tuning reads, in fp32, and what its files lack."""
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
        model.pooler = None  # never read here, and often not in the checkpoint
    if is_causal(config):
        model.config.use_cache = False  # of keys and values, for text that is to follow
    words = words_to_ids(cfg.task, tokenizer) if prompted else None
    # OPT-350m's last states are as narrow as its words
    width = getattr(model.config, "word_embed_proj_dim", model.config.hidden_size)
    head = None if prompted else new_head(width, len(cfg.task.labels), cfg.seed)
    classifier = Classifier(
        model,
        cfg.model.graftable,
        words=words,
        head=head,
        pool=cfg.finetune.pool,
        norm=cfg.finetune.norm,
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


def is_causal(config: PreTrainedConfig) -> bool:
    """Return whether a model reads from left to right only: it has a causal LM class and no masked one."""
    from transformers.models.auto import modeling_auto as auto

    return (
        config.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and config.model_type not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )


def check_kind(cfg: RunConfig, folder: Path, config: PreTrainedConfig) -> None:
    """Raise InputError, with the kinds that fit, where the kind of fine-tuning is not one for the model."""
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


def compiled(classifier: Classifier, batch: Batch) -> None:
    """Compile the base model in place, for batches of any size, and run it once.

    Raises InputError where torch cannot compile here.
    """
    # what earlier jobs of this process have compiled counts against its limit, past which the rest
    # would quietly run as written: a job of train and evaluation, with and without gradients, needs six
    torch.compiler.reset()
    torch.compiler.config.recompile_limit = 64
    torch.compiler.config.fail_on_recompile_limit_hit = True
    # dropout as without: the compiler's own would draw other entries
    classifier.model.base_model.compile(dynamic=True, options={"fallback_random": True})
    device = next(classifier.parameters()).device
    try:
        with torch.no_grad():
            classifier(to_device(batch, device))
    except Exception as error:  # of dynamo, of its backend, or of a compiler: no common class
        raise InputError(
            f"trainer.compile=true: torch cannot compile here ({reason(error)})"
        ) from error
