"""graft=file: grafts that are there already, made one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from omegaconf import MISSING

from skillgraft.config import selectors
from skillgraft.config.choices import Combine
from skillgraft.config.fields import not_identity
from skillgraft.config.selector_options import SelectorOptions
from skillgraft.runtime.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from skillgraft.core.graft import Graft


@dataclass
class Options(SelectorOptions):
    """The files of grafts, and how they become one."""

    reads_sparsity: ClassVar[bool] = False

    paths: list[str] = not_identity(list)  # the digests of the files are the identity
    """Graft files or folders of runs; or tasks of `finetune.tasks`, which mean those tasks'
    runs."""
    paths_selector: str | None = not_identity(None)
    """The selector whose runs are meant where `graft.paths` names tasks."""
    combine: Combine = MISSING
    """How several grafts become one: by union (the mean where they meet) or by intersection."""


def check_options(options: Options) -> None:
    """Raise InputError where there is no file, or no selector that made it."""
    if not options.paths:
        raise InputError("graft.paths: graft.selector=file needs the files of grafts, or runs")
    if options.paths_selector is not None:
        selectors.find(options.paths_selector, "graft.paths_selector")


def load(options: Options, theta_base: Mapping[str, Tensor]) -> Graft:
    """Return the grafts of the files that are named, made one by `graft.combine`."""
    from skillgraft.core import digests
    from skillgraft.core.graft import Graft, intersection, union
    from skillgraft.core.graft_facts import base_name
    from skillgraft.store import graft_files

    base = digests.digest(theta_base)
    files = [graft_files.graft_file(path) for path in options.paths]
    grafts = [Graft.load(file) for file in files]
    for file, graft in zip(files, grafts, strict=True):
        if graft.base != base:
            raise InputError(
                f"graft.paths: {file}: its base model is {base_name(graft)}, not this one"
            )
    return union(grafts) if options.combine is Combine.union else intersection(grafts)
