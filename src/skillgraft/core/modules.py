"""Transformer blocks and kinds of modules, found by the names of parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from skillgraft.core.layout import FlatLayout

# Kind of module → pattern of the names that transformers gives to its parameters. The first match counts:
# BERT's `attention.output.dense` would also match "MLP out".
MODULES = {
    "attention in": r"c_attn\.",  # GPT-2 has query, key and value in one matrix
    "query": r"(query|q_lin|q_proj|query_proj)\.|\.q_bias$",
    "key": r"(key|k_lin|k_proj|key_proj)\.",
    "value": r"(value|v_lin|v_proj|value_proj)\.|\.v_bias$",
    "LayerNorm": r"(LayerNorm|layer_?norm|ln_\d|[qk]_norm)\.",
    "attention output": r"(attention|attn)\.(output\.dense|out_lin|out_proj|o_proj|c_proj)\.",
    "MLP in": r"(intermediate\.dense|lin1|fc1|c_fc|gate_proj|up_proj)\.",
    "MLP out": r"(output\.dense|lin2|fc2|down_proj|mlp\.c_proj)\.",
}


def layer_of(name: str) -> str:
    """Return the number of the transformer block to which a parameter belongs, or 'other'."""
    match = re.search(r"(?:^|\.)(\d+)\.", name)
    return match[1] if match else "other"


def module_of(name: str) -> str:
    """Return the kind of module to which a parameter belongs (a key of MODULES), or 'other'."""
    return next((kind for kind, pattern in MODULES.items() if re.search(pattern, name)), "other")


def all_of(tensors: Mapping[str, Tensor], chosen: Callable[[str], bool]) -> Tensor:
    """Return the sorted flat indices of all elements of the tensors whose names are chosen."""
    layout = FlatLayout.of(tensors)
    indices = {
        name: torch.arange(size)
        for name, size in zip(layout.shapes, layout.sizes, strict=True)
        if chosen(name)
    }
    return layout.join(indices)


# kind of part → function from a tensor's name to the part of the model that contains the tensor
PART_OF: dict[str, Callable[[str], str]] = {
    "bias": lambda name: "bias" if name.endswith("bias") else "other",
    "layer": layer_of,
    "module": module_of,
}


def part_names(tensors: Iterable[str], kind: str) -> list[str]:
    """Return the parts of a kind (a key of PART_OF) that occur in a model, in the order of the tensors."""
    return list(dict.fromkeys(map(PART_OF[kind], tensors)))
