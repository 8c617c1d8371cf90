"""The dotted keys of the schema."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints

from skillgraft.config import selectors
from skillgraft.config.schema import RunConfig
from skillgraft.config.selector_options import SelectorOptions


def limits(entry: dataclasses.Field) -> str:
    """Return a field's range in words, after a space."""
    low, high = entry.metadata.get("low"), entry.metadata.get("high")
    if low is None:
        return ""
    return f" at least {low}" if high is None else f" from {low} to {high}"


@functools.cache  # to resolve annotations is slow, and each run asks for all keys many times
def nested(schema: type) -> Mapping[str, type]:
    """Return the schema of every field that is one itself, wherever that is defined, by the field's name.

    A field that may be None, as `Schema | None`, is one too. That of `graft` holds the options of all
    selectors.
    """
    found = {
        name: kind
        for name, hint in get_type_hints(schema).items()
        for kind in (hint, *get_args(hint))
        if isinstance(kind, type)
        and dataclasses.is_dataclass(kind)
        and (kind is hint or type(None) in get_args(hint))
    }
    return found | {n: selectors.union() for n, hint in found.items() if hint is SelectorOptions}


def dotted_keys(
    schema: type = RunConfig, prefix: str = ""
) -> Iterator[tuple[str, dataclasses.Field]]:
    """Yield every dotted key of the schema with its field."""
    for entry in dataclasses.fields(schema):
        yield prefix + entry.name, entry
        if entry.name in nested(schema):
            yield from dotted_keys(nested(schema)[entry.name], f"{prefix}{entry.name}.")


def keys_of(cfg: RunConfig) -> Iterator[tuple[str, dataclasses.Field]]:
    """Yield every dotted key that a configuration reads: of `graft`, those of its selector alone."""
    for name, entry in dotted_keys():
        if not name.startswith("graft."):
            yield name, entry
        if name == "graft":
            for own in dataclasses.fields(selectors.options(cfg)):
                yield f"graft.{own.name}", own


def unknown(node: Any, schema: type = RunConfig, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key that is not in the schema: Hydra takes +KEY=VALUE without asking."""
    known = {entry.name for entry in dataclasses.fields(schema)}
    for name in node:
        if name not in known:
            yield f"{prefix}{name}"
        elif name in nested(schema) and node[name] is not None:
            yield from unknown(node[name], nested(schema)[name], f"{prefix}{name}.")


def dotted(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of all values of a nested mapping."""
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
