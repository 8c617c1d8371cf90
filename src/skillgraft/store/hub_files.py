"""Graft files on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from skillgraft.runtime.errors import InputError
from skillgraft.store.names import GRAFT

SCHEME = "hub:"  # prefix of a reference: hub:OWNER/NAME or hub:OWNER/NAME@REVISION
FILE = GRAFT  # in a repository, as in a run's folder


def fetch(repo_id: str, revision: str | None = None) -> Path:
    """Download the graft file of a repository on the Hub, and return its path in the Hub's cache.

    The name of the file's folder is the commit. Raises InputError where the file cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError

    try:
        return Path(hf_hub_download(repo_id, FILE, revision=revision))
    except (HTTPError, OSError, ValueError) as error:
        named = f"{SCHEME}{repo_id}" + (f"@{revision}" if revision else "")
        raise InputError(f"{named}: no {FILE} found on the Hub ({reason(error)})") from error


def fetch_named(reference: str) -> Path:
    """Return the path of the graft file for a reference hub:OWNER/NAME[@REVISION]."""
    repo_id, _, revision = reference.removeprefix(SCHEME).partition("@")
    return fetch(repo_id, revision or None)


def pinned(reference: str) -> str:
    """Return a reference with the commit to which its revision points today.

    A branch may move; a commit stays the same file, so that a run's id always means the same graft.
    """
    commit = fetch_named(reference).parent.name
    return f"{reference.partition('@')[0]}@{commit}"


def reason(error: Exception) -> str:
    """Return an error's message in one line of at most 300 characters, or the name of its class."""
    return " ".join(str(error).split())[:300] or type(error).__name__
