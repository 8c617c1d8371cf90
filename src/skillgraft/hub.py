"""Grafts on the Hugging Face hub: a file by its reference, a push, and the model card. Needs no torch.

Whoever is logged in is the hub library's own business: no token passes through here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skillgraft.compared import MODELS
from skillgraft.errors import InputError

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, EvalResult

SCHEME = "hub:"  # of a reference: hub:OWNER/NAME or hub:OWNER/NAME@REVISION
FILE = "graft.safetensors"  # in a repository, as in a run's folder
PAPER = "https://arxiv.org/abs/2302.06600"
SHOWN = ("accuracy", "f1", "matthews", "ece", "agreement")  # of a split's metrics, on a card
CLASSES = {"autoregressive": "AutoModelForCausalLM", "linear": "AutoModel"}  # else a masked LM
CITATION = """@inproceedings{panigrahi2023skill,
  title = {Task-Specific Skill Localization in Fine-tuned Language Models},
  author = {Panigrahi, Abhishek and Saunshi, Nikunj and Zhao, Haoyu and Arora, Sanjeev},
  booktitle = {International Conference on Machine Learning},
  year = {2023}
}"""


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
        raise InputError(f"{named}: no {FILE} to be had from the hub ({reason(error)})") from error


def fetch_named(reference: str) -> Path:
    """Return the graft file that hub:OWNER/NAME[@REVISION] means."""
    repo_id, _, revision = reference.removeprefix(SCHEME).partition("@")
    return fetch(repo_id, revision or None)


def pinned(reference: str) -> str:
    """Return a reference with the commit that it means today: the same file ever after."""
    commit = fetch_named(reference).parent.name
    return f"{reference.partition('@')[0]}@{commit}"


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


def reason(error: Exception) -> str:
    """Return what the hub's library says of an error, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


# ---------------------------------------------------------------------------------------------
# The model card


def card(
    repo_id: str,
    facts: Mapping[str, str],
    meta: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
    task: Mapping[str, Any] | None = None,
    base_model: str | None = None,
) -> str:
    """Return the model card of a graft: YAML for the hub's own tables, and Markdown.

    `facts` are shown as they are; `meta` is the graft's own, `metrics` the content of its run's
    metrics.json, `task` the run's task, `base_model` the pre-trained model's id on the hub.
    """
    from huggingface_hub import ModelCard, ModelCardData

    metrics, task = metrics or {}, task or {}
    results = list(evaluated(metrics, facts["task"], dataset(task)))
    data = ModelCardData(
        base_model=base_model,
        library_name="skillgraft",
        pipeline_tag="text-classification",
        tags=["skillgraft", "model-grafting", "skill-localization"],
        datasets=dataset(task),
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=repo_id,
        eval_results=results,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# A graft of {facts['task']} for {base_model or meta.get('model')}",
        f"{facts['region']} of the pre-trained model have the values that they have after fine-tuning; "
        f"all others stay as they are ([skill localization]({PAPER})).",
        "## Use",
        usage(repo_id, meta, task, base_model or f"path/to/{meta.get('model')}"),
        "## What it is",
        table(["", ""], [[f"**{name}**", value] for name, value in facts.items()]),
    ]
    if metrics:
        parts += ["## What it is worth", measured(metrics)]
    parts += ["## Citation", f"```bibtex\n{CITATION}\n```"]
    return str(ModelCard("\n\n".join(parts) + "\n"))


def dataset(task: Mapping[str, Any]) -> str | None:
    """Return the hub's id of a task's data, where they come from there."""
    return task["hub"]["path"] if task.get("source") == "hub" else None


def evaluated(metrics: Mapping[str, Any], task: str, path: str | None) -> Iterator[EvalResult]:
    """Yield the graft's metrics on every test set, as the hub's tables have them."""
    from huggingface_hub import EvalResult

    for split, values in metrics.get("graft", {}).items():
        other = split.partition("/")[2]  # ood/<task> and tasks/<task>
        if split == "validation":
            continue
        for name in SHOWN:
            if values.get(name) is not None:
                yield EvalResult(
                    task_type="text-classification",
                    dataset_type=other or path or task,
                    dataset_name=other or task,
                    dataset_split="test",
                    metric_type=name,
                    metric_value=values[name],
                )


def usage(repo_id: str, meta: Mapping[str, Any], task: Mapping[str, Any], base: str) -> str:
    """Return how the graft is put on its model, and how the model is asked."""
    kind = CLASSES.get(meta.get("finetune") or "", "AutoModelForMaskedLM")
    text = f"""```python
from skillgraft import active, load_from_hub
from transformers import {kind}

model = {kind}.from_pretrained("{base}", dtype="float32")
graft = load_from_hub("{repo_id}")
graft.apply(model)  # in place; `with active(model, graft):` undoes it
```"""
    if meta.get("pool"):
        labels = ", ".join(f"`{label}`" for label in meta.get("labels", ()))
        pool = "first token" if meta["pool"] == "first" else meta["pool"]
        text += f"\n\n`graft.head` is a linear head on the last states ({pool}), for {labels}."
    elif task:
        words = ", ".join(f"`{label}`: {word}" for label, word in task["verbalizer"].items())
        text += f"\n\nPrompt: `{task['template']}`; the word of each label: {words}."
    return text


def measured(metrics: Mapping[str, Any]) -> str:
    """Return a table of the three models on every split."""
    lines = []
    for split in metrics["graft"]:
        for name in SHOWN:
            values = [metrics[model].get(split, {}).get(name) for model in MODELS]
            if any(value is not None for value in values):
                shown = ["" if value is None else f"{value:.3f}" for value in values]
                lines.append([split, name, *shown])
    return table(["split", "metric", *MODELS.values()], lines)


def table(columns: list[str], lines: list[list[str]]) -> str:
    """Return a Markdown table."""
    rows = [columns, ["---"] * len(columns), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def public_id(path: str) -> str | None:
    """Return a model's path where it is a hub id: no folder and no package, which others do not have."""
    return path if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", path) else None
