"""A description of a graft: its base model, its tasks, and the layers and modules of its region."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from skillgraft.core import regions
from skillgraft.core.modules import layer_of, module_of

if TYPE_CHECKING:
    from skillgraft.core.graft import Graft


def base_name(graft: Graft) -> str:
    """Return the base model's name and the first 12 digits of its digest."""
    return f"{graft.meta.get('model', 'unnamed')} ({graft.base[:12]})"


def tasks_of(graft: Graft) -> list[str]:
    """Return the tasks for which the graft's region was chosen: one, or the tasks of its parents."""
    return list(dict.fromkeys(named_tasks(graft.meta)))


def sizes_of(graft: Graft) -> dict[str, int]:
    """Return the number of the region's parameters in each tensor."""
    return {name: index.numel() for name, index in graft.indices.items()}


def shares_by_layer(graft: Graft) -> dict[str, float]:
    """Return the share of the region in each transformer block, by the block's number."""
    return regions.shares(sizes_of(graft), layer_of)


def shares_by_module(graft: Graft) -> dict[str, float]:
    """Return the share of the region in each kind of module (query, key, MLP in, …)."""
    return regions.shares(sizes_of(graft), module_of)


def facts(graft: Graft) -> dict[str, str]:
    """Return the description of a graft, one line of text by its name."""
    told = {"selector": "selector", "requested sparsity": "requested_sparsity", "rule": "rule"}
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
    """Return one line: size, sparsity, base model, task, selector, and the main layer and module."""
    about = [f"{key}={graft.meta[key]}" for key in ("task", "selector") if key in graft.meta]
    if graft.size:
        layer, module = most(shares_by_layer(graft), 1), most(shares_by_module(graft), 1)
        about.append(f"layer {layer}, {module}")
    return (
        f"Graft({graft.size:,} of {graft.graftable:,} = {graft.sparsity:.2e}, "
        f"base {', '.join([base_name(graft), *about])})"
    )


def html_table(graft: Graft) -> str:
    """Return the description of a graft as a small HTML table."""
    rows = (map(html.escape, pair) for pair in facts(graft).items())
    cells = (f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows)
    return f"<table>{''.join(cells)}</table>"


def named_tasks(meta: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tasks for which a region was chosen, from a graft's `meta` and those of its parents."""
    if "regions" in meta:  # stored grafts that a run evaluates on another task
        yield from meta["regions"]
    elif "parents" in meta:
        for parent in meta["parents"]:
            yield from named_tasks(parent)
    else:
        yield str(meta.get("task", "unnamed"))


def most(shares: Mapping[str, float], count: int = 3) -> str:
    """Return the `count` groups with the largest shares of a region, in percent: '3 (41 %), 2 (30 %)'."""
    order = sorted((group for group in shares if shares[group]), key=lambda group: -shares[group])
    return ", ".join(f"{group} ({round(100 * shares[group])} %)" for group in order[:count])
