"""What there is to say of a graft: its base, its tasks, and where its region lies."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from skillgraft import region

if TYPE_CHECKING:
    from skillgraft.graft import Graft

MODULES = {  # kinds of module in a transformer block, by name (method: section 3, `module`)
    "attention in": r"c_attn\.",  # GPT-2's query, key and value in one matrix
    "query": r"(query|q_lin|q_proj|query_proj)\.|\.q_bias$",
    "key": r"(key|k_lin|k_proj|key_proj)\.",
    "value": r"(value|v_lin|v_proj|value_proj)\.|\.v_bias$",
    "LayerNorm": r"(LayerNorm|layer_?norm|ln_\d|[qk]_norm)\.",
    "attention output": r"(attention|attn)\.(output\.dense|out_lin|out_proj|o_proj|c_proj)\.",
    "MLP in": r"(intermediate\.dense|lin1|fc1|c_fc|gate_proj|up_proj)\.",
    "MLP out": r"(output\.dense|lin2|fc2|down_proj|mlp\.c_proj)\.",
}


def base_name(graft: Graft) -> str:
    """Return the base model's name and the start of its digest."""
    return f"{graft.meta.get('model', 'unnamed')} ({graft.base[:12]})"


def tasks_of(graft: Graft) -> list[str]:
    """Return the tasks whose regions the graft holds: one, or those of its parents."""
    return list(dict.fromkeys(named_tasks(graft.meta)))


def sizes_of(graft: Graft) -> dict[str, int]:
    """Return the number of the region's parameters in each tensor."""
    return {name: index.numel() for name, index in graft.indices.items()}


def shares_by_layer(graft: Graft) -> dict[str, float]:
    """Return the share of the region in each transformer block, by its number."""
    return region.shares(sizes_of(graft), layer_of)


def shares_by_module(graft: Graft) -> dict[str, float]:
    """Return the share of the region in each kind of module."""
    return region.shares(sizes_of(graft), module_of)


def facts(graft: Graft) -> dict[str, str]:
    """Return what there is to say of a graft in a few lines, each with its name."""
    told = {"selector": "selector", "sparsity asked": "asked_sparsity", "rule": "rule"}
    told |= {"fine-tuning": "finetune", "seed": "seed"}
    size = f"{graft.size:,} of {graft.graftable:,} parameters ({graft.sparsity:.2e})"
    return {
        "base model": base_name(graft),
        "task": ", ".join(tasks_of(graft)),
        "region": size,
        **{name: str(graft.meta[k]) for name, k in told.items() if graft.meta.get(k) is not None},
        "mostly in layers": most(shares_by_layer(graft)),
        "mostly in modules": most(shares_by_module(graft)),
    }


def one_line(graft: Graft) -> str:
    """Return size, sparsity, base model, task, selector, and where most of the region is."""
    about = [f"{key}={graft.meta[key]}" for key in ("task", "selector") if key in graft.meta]
    if graft.size:
        layer, module = most(shares_by_layer(graft), 1), most(shares_by_module(graft), 1)
        about.append(f"layer {layer}, {module}")
    return (
        f"Graft({graft.size:,} of {graft.graftable:,} = {graft.sparsity:.2e}, "
        f"base {', '.join([base_name(graft), *about])})"
    )


def html_table(graft: Graft) -> str:
    """Return a small table for a notebook."""
    rows = (map(html.escape, pair) for pair in facts(graft).items())
    cells = (f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows)
    return f"<table>{''.join(cells)}</table>"


def named_tasks(meta: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tasks that a graft's region was chosen for: its own, or those of its parents."""
    if "regions" in meta:  # stored grafts, evaluated on another task
        yield from meta["regions"]
    elif "parents" in meta:
        for parent in meta["parents"]:
            yield from named_tasks(parent)
    else:
        yield str(meta.get("task", "unnamed"))


def most(shares: Mapping[str, float], count: int = 3) -> str:
    """Return the groups with the largest shares of a region, in percent: '3 (41 %), 2 (30 %)'."""
    order = sorted((group for group in shares if shares[group]), key=lambda group: -shares[group])
    return ", ".join(f"{group} ({round(100 * shares[group])} %)" for group in order[:count])


def layer_of(name: str) -> str:
    """Return the number of the transformer block in a parameter's name, or 'other'."""
    match = re.search(r"(?:^|\.)(\d+)\.", name)
    return match[1] if match else "other"


def module_of(name: str) -> str:
    """Return the kind of module a parameter belongs to, or 'other'."""
    return next((kind for kind, pattern in MODULES.items() if re.search(pattern, name)), "other")
