"""Errors of composing a configuration, in one line."""

from __future__ import annotations

import re

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from skillgraft.config import launchers
from skillgraft.config.keys import dotted_keys
from skillgraft.config.nearest import nearest

# What Hydra raises before a job starts: a wrong key, value, group option or command line.
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException)


def explain(error: BaseException) -> str:
    """Return one line for an error of composing the configuration, with the nearest right name."""
    if isinstance(error, (AssertionError, AttributeError)) and "NoneType" in str(error):
        # OmegaConf's, of a key below one that is null: the claim alone can be both
        return "claim: only a sweep file can state one; claim.KEY=VALUE then changes it"
    cause = error
    while not isinstance(cause, OmegaConfBaseException):
        # where a file of a group is at fault, Hydra raises without naming its cause
        within = cause.__context__ if "raised while composing" in str(cause) else None
        if (deeper := cause.__cause__ or within) is None:
            break
        cause = deeper
    if isinstance(cause, MarkedYAMLError) and cause.problem_mark is not None:
        mark = cause.problem_mark
        return f"{mark.name}, line {mark.line + 1}: not YAML ({cause.problem})"
    first = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        known = [name for name, _ in dotted_keys()]
        file = re.match(r"In '[^']+': ", str(error))
        where = file[0] if file else ""
        if "not in" in first:
            key = cause.full_key
            if key in known:
                return f"{where}{key}: every key needs its value; it cannot be removed"
            if key == "sweep":  # an optional group of conf/run.yaml that only users have files in
                return "sweep: no such file; give your folder: --config-dir FOLDER sweep=FILE"
            return f"{where}no key '{key}' in the configuration.{nearest(key, known)}"
        return f"{where}{cause.full_key}: {first}"
    place = str(getattr(error, "missing_cfg_file", ""))
    asked = place.rsplit("/", 1)[-1]
    if line := launchers.missing(place):
        return line
    if options := [name for name in getattr(error, "options", None) or () if name[0] != "_"]:
        # the names that begin with _ are what the files of a folder share
        first = first.partition(". Options:")[0]
        return f"{first}. Options: {', '.join(options)}.{nearest(asked, options)}"
    if match := re.match(r"Multiple values for (\S+)\. .*'override \S+: (\S+)'", first):
        group, option = match.groups()
        return (
            f"{group} has its place already: write {group}={option}, without a plus "
            f"(in a file's defaults: override /{group}: {option})"
        )
    if match := re.search(r"Could not override '([^']+)'", str(error)):
        return f"{first}.{nearest(match[1], [name for name, _ in dotted_keys()])}"
    return first
