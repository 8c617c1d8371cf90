"""Find the graft files that a configuration names, and read their headers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from skillgraft.runtime.errors import InputError
from skillgraft.store import hub_files
from skillgraft.store.names import GRAFT


def graft_file(path: str) -> Path:
    """Return the graft file for a path: a run's folder, hub:OWNER/NAME[@REVISION], or a file."""
    if path.startswith(hub_files.SCHEME):
        return hub_files.fetch_named(path)
    file = Path(path) / GRAFT if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no run's folder, and no graft file")
    return file


def graft_meta(file: Path) -> dict[str, Any]:
    """Return the `meta` of a graft file (task, selector, …), read from the file's header alone."""
    try:
        with safe_open(file, framework="numpy") as content:
            header = json.loads((content.metadata() or {}).get("skillgraft", "null"))
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise InputError(
            f"graft.paths: {file}: not a complete safetensors file ({error})"
        ) from error
    if not isinstance(header, dict) or not isinstance(header.get("meta"), dict):
        raise InputError(f"graft.paths: {file}: a safetensors file, but no graft")
    return header["meta"]


def made_of(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a graft's `meta` that is the same for every seed: task, selector, size, parents."""
    kept = {name: meta.get(name) for name in ("task", "selector", "requested_sparsity", "rule")}
    return {**kept, "parents": [made_of(parent) for parent in meta.get("parents", ())]}
