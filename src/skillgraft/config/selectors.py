"""The selectors by name: the modules of this package, and those of other packages.

A selector is a module with

- `Options`: a dataclass, the keys of `graft` that the selector reads, each with its range;
- `select(selection)`: a function from a `Selection` to the sorted flat indices of the region.

It may have `check(options, theta_base)`, which raises InputError for a region that a model cannot
have, before anything is trained; or, in the place of `select`, `load(options, theta_base)`, which
returns a graft that is there already. `graft=NAME` finds the module by its name, or the module of
an entry point NAME of the group `skillgraft.selectors`. A module is imported when it is asked for;
it imports torch in its functions only, since to compose a configuration takes its options.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import logging
import pkgutil
from importlib.metadata import entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any, Optional, cast, get_args, get_type_hints

from omegaconf import MISSING, OmegaConf

from skillgraft.config.nearest import nearest
from skillgraft.config.packages import PACKAGE
from skillgraft.config.selector_options import SelectorOptions
from skillgraft.runtime.errors import InputError

if TYPE_CHECKING:
    from skillgraft.config.schema import RunConfig

log = logging.getLogger(__name__)

OURS = "skillgraft.experiments.selectors"
GROUP = "skillgraft.selectors"
SHARED = {entry.name for entry in dataclasses.fields(SelectorOptions)}


@functools.cache
def modules() -> dict[str, str]:
    """Return the name of the module of every selector, by the selector's name."""
    folder = PACKAGE.joinpath(*OURS.split(".")[1:])
    theirs = {entry.name: entry.value for entry in entry_points(group=GROUP)}
    return theirs | {m.name: f"{OURS}.{m.name}" for m in pkgutil.iter_modules([str(folder)])}


def find(name: str, key: str = "graft.selector") -> ModuleType:
    """Return the module of a selector. Raises InputError where there is none of the name that `key` has."""
    if name not in modules():
        known = sorted(modules())
        raise InputError(
            f"{key}='{name}': expected one of {', '.join(known)}.{nearest(name, known)}"
        )
    try:
        return importlib.import_module(modules()[name])
    except Exception as error:  # whatever the module of another package raises
        if modules()[name].startswith(OURS):
            raise
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"graft={name}: cannot be imported ({what})") from error


def options_of(name: str) -> type[SelectorOptions]:
    """Return the dataclass of a selector's options."""
    found: type[SelectorOptions] = find(name).Options
    return found


def options(cfg: RunConfig) -> type[SelectorOptions]:
    """Return the dataclass of the options of a configuration's selector."""
    return options_of(cfg.graft.selector)


@functools.cache
def union() -> type[SelectorOptions]:
    """Return a dataclass with the options of all selectors, each of which may be null.

    A configuration is composed with it: one sweep over several selectors may then set an option
    that only some of them read. `own_options` leaves those out that the chosen one does not read.
    """
    found: dict[str, tuple[str, Any, Any]] = {}
    for name in modules():
        try:
            schema = options_of(name)
        except InputError as error:
            log.warning("%s", error)  # a selector of another package stops no other
            continue
        hints = get_type_hints(schema)
        for entry in dataclasses.fields(schema):
            if entry.name in SHARED or entry.name in found:
                continue
            made = {"default": None} if entry.default is MISSING else default_of(entry)
            hint = hints[entry.name]
            kind = hint if "default_factory" in made else Optional[hint]  # noqa: UP045
            found[entry.name] = (
                entry.name,
                kind,
                dataclasses.field(metadata=entry.metadata, **made),
            )
    return dataclasses.make_dataclass("GraftConfig", found.values(), bases=(SelectorOptions,))


def default_of(entry: dataclasses.Field) -> dict[str, Any]:
    """Return a field's default as the argument of `dataclasses.field`."""
    if entry.default_factory is not dataclasses.MISSING:
        return {"default_factory": entry.default_factory}
    return {"default": entry.default}


def blank_options(name: str, size_from: str | None = None) -> SelectorOptions:
    """Return the options of a selector without values, apart from its name and `size_from`."""
    blank = cast(SelectorOptions, OmegaConf.structured(options_of(name)))
    blank.selector, blank.size_from = name, size_from
    return blank


def own_options(cfg: RunConfig) -> SelectorOptions:
    """Return the options that the configured selector reads. Raises InputError where one needs a value."""
    schema = options(cfg)
    hints, given = get_type_hints(schema), cast(dict, OmegaConf.to_container(cast(Any, cfg.graft)))
    own = {f.name: given[f.name] for f in dataclasses.fields(schema) if f.name in given}
    for name, value in own.items():
        if value is None and type(None) not in get_args(hints[name]):
            raise InputError(f"graft.{name}: graft.selector={cfg.graft.selector} needs a value")
    return cast(SelectorOptions, OmegaConf.merge(OmegaConf.structured(schema), own))
