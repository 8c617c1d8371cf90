"""The model card of a graft."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from skillgraft.evaluation.compared import MODELS

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

PAPER = "https://arxiv.org/abs/2302.06600"
SHOWN = ("accuracy", "f1", "matthews", "ece", "agreement")  # of a split's metrics, on a card
CLASSES = {"autoregressive": "AutoModelForCausalLM", "linear": "AutoModel"}  # else a masked LM
CITATION = """@inproceedings{panigrahi2023skill,
  title = {Task-Specific Skill Localization in Fine-tuned Language Models},
  author = {Panigrahi, Abhishek and Saunshi, Nikunj and Zhao, Haoyu and Arora, Sanjeev},
  booktitle = {International Conference on Machine Learning},
  year = {2023}
}"""


def card(
    repo_id: str,
    facts: Mapping[str, str],
    meta: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
    task: Mapping[str, Any] | None = None,
    base_model: str | None = None,
) -> str:
    """Return the model card of a graft: YAML for the hub's own tables, and Markdown.

    Args:
        repo_id: the hub repository, OWNER/NAME.
        facts: what the card says of the graft, shown as it is.
        meta: the graft's own record of its origin.
        metrics: the content of its run's metrics.json.
        task: the task of the run's configuration.
        base_model: the pre-trained model's id on the hub.
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
