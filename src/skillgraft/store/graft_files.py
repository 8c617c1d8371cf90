"""Graft files that a configuration names."""

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
    """Return the graft file of a run's folder, of hub:OWNER/NAME[@REVISION], or the file itself."""
    if path.startswith(hub_files.SCHEME):
        return hub_files.fetch_named(path)
    file = Path(path) / GRAFT if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no run's folder, and no graft file")
    return file


def graft_meta(file: Path) -> dict[str, Any]:
    """Return what a graft file says of itself, from its header alone."""
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
    """Return how a graft was made, the same for every seed: task, selector and size, or parents."""
    kept = {name: meta.get(name) for name in ("task", "selector", "requested_sparsity", "rule")}
    return {**kept, "parents": [made_of(parent) for parent in meta.get("parents", ())]}
