"""Where the configuration folders and installed packages lie."""

from __future__ import annotations

import importlib.util
from importlib import resources
from pathlib import Path

from skillgraft.runtime.errors import InputError

PACKAGE = Path(str(resources.files("skillgraft"))).resolve()


def shipped(folder: str) -> Path:
    """Return a configuration folder: inside an installed wheel, or at the top of a checkout."""
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parents[1] / folder


CONF = shipped("conf")
SWEEPS = shipped("multirun_sweeps")


def package_path(path: str, key: str, hint: str = "") -> Path:
    """Return the folder of `package:NAME/INNER` without importing the package."""
    name, _, inner = path.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):  # of the part before a dot; an empty name
        spec = None
    if spec is None or spec.origin is None:
        raise InputError(f"{key}: the package {name} is not installed.{hint}")
    return Path(spec.origin).parent / inner
