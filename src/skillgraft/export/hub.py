"""Grafts on the Hugging Face Hub: read from there, and sent with a model card."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skillgraft.core.graft import Graft
from skillgraft.core.graft_facts import facts
from skillgraft.export import model_card
from skillgraft.runtime.errors import InputError
from skillgraft.store import hub_files
from skillgraft.store.hub_files import reason
from skillgraft.store.names import METRICS

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


def push(folder: Path, repo_id: str, private: bool = False) -> CommitInfo:
    """Upload the files of a folder to a hub repository, which is made where it is not there yet.

    `private` is for a new repository. Raises InputError where the hub does not take them.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    api = HfApi()
    try:
        # not False: an organization may have its repositories private unless it is told otherwise
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="A graft by skillgraft"
        )
    except (HTTPError, OSError, ValueError) as error:
        raise InputError(
            f"{repo_id}: the hub does not take the graft ({reason(error)}); "
            "`hf auth whoami` says who is logged in"
        ) from error


def public_id(path: str) -> str | None:
    """Return a model's path where it is a hub id: no folder and no package, which others do not have."""
    return path if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", path) else None


def load_from_hub(repo_id: str, revision: str | None = None) -> Graft:
    """Return the graft of a hub repository, checked as a local file is; raises InputError."""
    return Graft.load(hub_files.fetch(repo_id, revision))


def card_of(
    graft: Graft,
    repo_id: str,
    *,
    metrics: Mapping[str, Any] | None = None,
    task: Mapping[str, Any] | None = None,
    base_model: str | None = None,
) -> str:
    """Return the graft's model card for the hub.

    What is None is not on the card.

    Args:
        graft: the graft.
        repo_id: the hub repository, OWNER/NAME.
        metrics: the content of a run's metrics.json.
        task: the task of the run's configuration.
        base_model: the pre-trained model's id on the hub.
    """
    told = {**facts(graft), "sha256 of the graftable base": graft.base}
    return model_card.card(repo_id, told, graft.meta, metrics, task, base_model)


def push_to_hub(
    graft: Graft,
    repo_id: str,
    *,
    metrics: Mapping[str, Any] | None = None,
    task: Mapping[str, Any] | None = None,
    base_model: str | None = None,
    private: bool = False,
) -> CommitInfo:
    """Put graft, card and metrics into a hub repository, made where it is not there.

    Whoever `hf auth login` has logged in, or HF_TOKEN names. Raises InputError.

    Args:
        graft: the graft.
        repo_id: the hub repository, OWNER/NAME.
        metrics: the content of a run's metrics.json; sent as a file as well.
        task: the task of the run's configuration.
        base_model: the pre-trained model's id on the hub.
        private: whether a new repository is private.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        graft.save(folder / hub_files.FILE)
        text = card_of(graft, repo_id, metrics=metrics, task=task, base_model=base_model)
        (folder / "README.md").write_text(text, encoding="utf-8")
        if metrics is not None:
            content = json.dumps(metrics, indent=1, allow_nan=False) + "\n"
            (folder / METRICS).write_text(content, encoding="utf-8")
        return push(folder, repo_id, private)
