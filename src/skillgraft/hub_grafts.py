"""Grafts on the Hugging Face hub: read from there, and sent with a model card."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skillgraft import hub
from skillgraft.graft import Graft
from skillgraft.graft_facts import facts

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


def load_from_hub(repo_id: str, revision: str | None = None) -> Graft:
    """Return the graft of a hub repository, checked as a local file is; raises InputError."""
    return Graft.load(hub.fetch(repo_id, revision))


def card(
    graft: Graft,
    repo_id: str,
    *,
    metrics: Mapping[str, Any] | None = None,
    task: Mapping[str, Any] | None = None,
    base_model: str | None = None,
) -> str:
    """Return the graft's model card for the hub.

    `metrics` is the content of a run's metrics.json, `task` its configuration's task, `base_model`
    the pre-trained model's hub id; what is not given is left out.
    """
    told = {**facts(graft), "sha256 of the graftable base": graft.base}
    return hub.card(repo_id, told, graft.meta, metrics, task, base_model)


def push_to_hub(
    graft: Graft,
    repo_id: str,
    *,
    metrics: Mapping[str, Any] | None = None,
    task: Mapping[str, Any] | None = None,
    base_model: str | None = None,
    private: bool = False,
) -> CommitInfo:
    """Put graft, card and metrics into a hub repository, made where it is not there; see `card`.

    Whoever `hf auth login` has logged in, or HF_TOKEN names. Raises InputError.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        graft.save(folder / hub.FILE)
        text = card(graft, repo_id, metrics=metrics, task=task, base_model=base_model)
        (folder / "README.md").write_text(text, encoding="utf-8")
        if metrics is not None:
            content = json.dumps(metrics, indent=1, allow_nan=False) + "\n"
            (folder / "metrics.json").write_text(content, encoding="utf-8")
        return hub.push(folder, repo_id, private)
