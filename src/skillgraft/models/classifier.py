"""A pre-trained model that returns class logits, and its graftable parameters."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from skillgraft.config.choices import Pool
from skillgraft.runtime.errors import InputError
from skillgraft.runtime.seeds import derive
from skillgraft.tasks.batches import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Classifier(nn.Module):
    """A transformers model that returns (B, classes) logits, from a prompt or from a linear head.

    By prompt, the class logits are the LM head's logits of the label words, as in LM-BFF (Gao et al.,
    ACL 2021): a masked LM is read at the mask token, and a causal LM (`causal`) at the last token.

    Args:
        model: the transformers model, with or without an LM head.
        graftable: regular expressions of the names of graftable parameters; all others are frozen.
        words: ids of the verbalizer, one per class; None with a linear head.
        head: a linear head, (classes, hidden); None where the LM head is read.
        pool: which hidden state the head reads; None without a head.
        norm: the ℓ2 norm to which the head's features are scaled; None: as they are.
        causal: whether the logits are those at the last token.
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
        # Graft files name parameters without the base model's prefix ("roberta."), so that one file fits
        # the masked LM and the bare encoder.
        self.graftable = {
            name.removeprefix(prefix): parameter
            for name, parameter in model.named_parameters()
            if any(pattern.search(name) for pattern in patterns)
        }
        # Embeddings and LM head stay frozen, as in the paper, so that no gradient is computed for them.
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in self.graftable.values():
            parameter.requires_grad_(True)
        # inspect.signature looks through the wrapper that transformers puts around forward. The
        # configuration is needed too: GPT-2 accepts token types, and would embed them as words.
        self.types = bool(getattr(model.config, "type_vocab_size", 0)) and (
            "token_type_ids" in inspect.signature(model.forward).parameters
        )
        if words is not None:
            self.register_buffer("words", torch.tensor(words), persistent=False)
            self._position: Tensor | None = None
            if causal:  # a hook on the LM head: OPT's LM class does not call its base model
                model.get_output_embeddings().register_forward_pre_hook(self._keep_last_only)
            else:
                model.base_model.register_forward_hook(self._keep_mask_only)

    def _keep_mask_only(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Reduce the encoder's output, (B, T, H), to the hidden state at the mask, (B, 1, H).

        The LM head then computes B × V logits, not B × T × V.
        """
        output["last_hidden_state"] = self._at_position(output["last_hidden_state"])
        return output

    def _keep_last_only(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Reduce the LM head's input, (B, T, H), to the hidden state of the last token, (B, 1, H)."""
        return (self._at_position(args[0]),)

    def _at_position(self, hidden: Tensor) -> Tensor:
        """Return the hidden state of each example at the position that is read: (B, T, H) → (B, 1, H)."""
        rows = torch.arange(len(hidden), device=hidden.device)
        return hidden[rows, self._position].unsqueeze(1)

    def forward(self, batch: Batch) -> Tensor:
        """Return the class logits of a batch in fp32, (B, classes)."""
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        if self.types:
            inputs["token_type_ids"] = batch["token_type_ids"]
        if self.head is None:
            self._position = batch["mask_position"]
            words = batch.get("words", self.words)  # another task's batch has its own label words
            return self.model(**inputs).logits[:, 0].index_select(1, words).float()
        hidden = self.model(**inputs).last_hidden_state  # (B, T, H)
        return self.head(self._pooled(hidden, batch).to(self.head.weight.dtype)).float()

    def _pooled(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Return the features that the linear head reads, (B, H), scaled to `norm` if there is one."""
        if self.pool is Pool.mean:
            weight = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)  # (B, T, 1): no padding
            features = (hidden * weight).sum(1) / weight.sum(1)
        else:  # without a template the position is 0, that of the first token
            features = hidden[
                torch.arange(len(hidden), device=hidden.device), batch["mask_position"]
            ]
        if self.norm is None:
            return features
        return nn.functional.normalize(features, dim=-1) * self.norm

    @contextmanager
    def fixed_head(self) -> Iterator[None]:
        """Compute no gradient for a new head inside a `with` block, since the head is not graftable."""
        parameters = [] if self.head is None else list(self.head.parameters())
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)

    def trained(self) -> dict[str, Tensor]:
        """Return the tensors that fine-tuning may change, by name: graftable parameters, then a new head.

        The head's tensors are named `head.weight` and `head.bias`.
        """
        tensors = {name: p.data for name, p in self.graftable.items()}
        if self.head is not None:
            tensors |= {f"head.{name}": p.data for name, p in self.head.named_parameters()}
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Copy stored tensors, with the names that `trained` gives, into the model."""
        with torch.no_grad():
            for name, target in self.trained().items():
                target.copy_(tensors[name])


def new_head(hidden: int, classes: int, seed: int) -> nn.Linear:
    """Return a new linear head, (classes, hidden), with N(0, 0.02²) weights and zero biases.

    The standard deviation is that of BERT and RoBERTa. The draw depends on `seed` alone.
    """
    # skip_init: nn.Linear's own draw would advance torch's global generator
    head = nn.utils.skip_init(nn.Linear, hidden, classes)
    generator = torch.Generator().manual_seed(derive(seed, "model", "head"))
    with torch.no_grad():
        head.weight.normal_(0, 0.02, generator=generator)
        head.bias.zero_()
    return head
