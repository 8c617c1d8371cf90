"""Graft files on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from skillgraft.runtime.errors import InputError
from skillgraft.store.names import GRAFT

SCHEME = "hub:"  # of a reference: hub:OWNER/NAME or hub:OWNER/NAME@REVISION
FILE = GRAFT  # in a repository, as in a run's folder


def fetch(repo_id: str, revision: str | None = None) -> Path:
    """Return the graft file of a hub repository, in the hub's cache; the folder's name is the commit.

    Raises InputError where the hub does not give it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError

    try:
        return Path(hf_hub_download(repo_id, FILE, revision=revision))
    except (HTTPError, OSError, ValueError) as error:
        named = f"{SCHEME}{repo_id}" + (f"@{revision}" if revision else "")
        raise InputError(f"{named}: no {FILE} found on the Hub ({reason(error)})") from error


def fetch_named(reference: str) -> Path:
    """Return the graft file that hub:OWNER/NAME[@REVISION] means."""
    repo_id, _, revision = reference.removeprefix(SCHEME).partition("@")
    return fetch(repo_id, revision or None)


def pinned(reference: str) -> str:
    """Return a reference with the commit that it means today: the same file ever after."""
    commit = fetch_named(reference).parent.name
    return f"{reference.partition('@')[0]}@{commit}"


def reason(error: Exception) -> str:
    """Return what the hub's library says of an error, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
