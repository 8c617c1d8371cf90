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
from typing import TYPE_CHECKING, Any, cast, get_type_hints

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
    types: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    for name in modules():
        try:
            schema = options_of(name)
        except InputError as error:
            log.warning("%s", error)  # a selector of another package stops no other
            continue
        hints = get_type_hints(schema)
        for entry in dataclasses.fields(schema):
            wanted = hints[entry.name] | None
            # two selectors may mean different things by one name: each checks its own
            same = types.setdefault(entry.name, wanted) == wanted
            types[entry.name] = wanted if same else Any
            metadata.setdefault(entry.name, entry.metadata)
    own = [
        (name, kind, dataclasses.field(default=None, metadata=metadata[name]))
        for name, kind in types.items()
        if name not in SHARED
    ]
    made = dataclasses.make_dataclass("GraftConfig", own, bases=(SelectorOptions,))
    made.__module__ = __name__  # where a process that unpickles a configuration looks for the class
    return made


def __getattr__(name: str) -> Any:
    if name == "GraftConfig":
        return union()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def blank_options(name: str, size_from: str | None = None) -> SelectorOptions:
    """Return the options of a selector without values, apart from its name and `size_from`."""
    blank = cast(SelectorOptions, OmegaConf.structured(options_of(name)))
    blank.selector, blank.size_from = name, size_from
    return blank


def own_options(cfg: RunConfig) -> SelectorOptions:
    """Return the options that the configured selector reads. Raises InputError where one needs a value."""
    schema = options(cfg)
    given = cast(dict, OmegaConf.to_container(cast(Any, cfg.graft)))
    own = {}
    for entry in dataclasses.fields(schema):
        value = given.get(entry.name)
        if value is None and entry.default == MISSING:
            raise InputError(
                f"graft.{entry.name}: graft.selector={cfg.graft.selector} needs a value"
            )
        if value is not None:  # else the default
            own[entry.name] = value
    return cast(SelectorOptions, OmegaConf.merge(OmegaConf.structured(schema), own))
