"""Read the examples of a task from the Hugging Face Hub, or find them in a local folder."""

from __future__ import annotations

import json
from pathlib import Path

from skillgraft.config.choices import Source
from skillgraft.config.schema import TaskConfig
from skillgraft.runtime.errors import InputError, reason
from skillgraft.tasks.readers import READERS, Record


def read_hub(task: TaskConfig, split: str) -> tuple[list[Record], list[str]]:
    """Return the records of one split of a data set on the Hub, and the names of its integer labels.

    There are no names where the data set's own description has none.
    """
    hub = task.hub
    if hub.path is None:
        raise InputError(
            f"task {task.name}: no hub data set is known for it; give data_dir=FOLDER with "
            f"FOLDER/{task.name}/{split}.jsonl"
        )
    source = getattr(hub, split)
    if source is None:
        return [], []
    import datasets
    import httpx  # huggingface-hub 1 is built on httpx, and lets its errors through

    datasets.disable_progress_bars()
    where = f"{hub.path}{f' ({hub.name})' if hub.name else ''}"
    try:
        rows = datasets.load_dataset(hub.path, hub.name, split=source, revision=hub.revision)
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        raise InputError(
            f"task {task.name}: cannot load {where}, split {source}, from the hub ({reason(error)}); "
            f"with a local copy give data_dir=FOLDER, with FOLDER/{task.name}/"
        ) from error
    records = ((f"{where}, {source}, row {n}", record) for n, record in enumerate(rows, 1))
    # −1 marks examples without a label: SNLI's without agreement, and GLUE's test sets
    kept = [(place, record) for place, record in records if record.get(hub.columns.label) != -1]
    own = getattr(rows.features.get(hub.columns.label), "names", None)  # ClassLabel has names
    return kept, list(own or [])


def local_folder(task: TaskConfig, data_dir: str | None) -> Path | None:
    """Return the folder of a task's local copy, or None where the task comes from elsewhere.

    A task that `data_dir` lacks comes from the Hub, so that `data_dir` need hold only the tasks that the
    Hub lacks.
    """
    if task.source is not Source.hub or data_dir is None:
        return None
    folder = Path(data_dir) / task.name
    if not folder.is_dir() and (task.hub.path is None or not Path(data_dir).is_dir()):
        raise InputError(f"data_dir={data_dir}: no folder {folder} for task {task.name}")
    return folder if folder.is_dir() else None


def folder_split(folder: Path, split: str) -> Path | None:
    """Return the file of a split in a task's folder `<data_dir>/<task>/`, or None."""
    files = (folder / f"{split}{suffix}" for suffix in READERS)
    return next((file for file in files if file.is_file()), None)


def folder_labels(folder: Path) -> list[str] | None:
    """Return the names of integer labels, `label_names` in a folder's meta.json; None without the file."""
    meta = folder / "meta.json"
    if not meta.is_file():
        return None
    try:
        names = json.loads(meta.read_text(encoding="utf-8-sig"))["label_names"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{meta}: expected an object with a list 'label_names'") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{meta}: expected an object with a list 'label_names' of names")
    return names
