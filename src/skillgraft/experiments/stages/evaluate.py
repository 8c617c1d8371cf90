"""Evaluate: metrics.json and the predictions of all models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skillgraft.experiments import baselines
from skillgraft.experiments.stages.load import LoadedRun
from skillgraft.experiments.stages.select import SelectedRun
from skillgraft.runtime.files import write_json
from skillgraft.store.names import GRAFT, METRICS, PREDICTIONS, TASK_PREDICTIONS

if TYPE_CHECKING:
    from skillgraft.core.graft import Graft
    from skillgraft.evaluation.predict import Predictions


@dataclass(frozen=True)
class EvaluatedRun:
    """A run that is measured: metrics.json, and the predictions of its own task by model and split."""

    selected: SelectedRun
    metrics: Mapping[str, Any]
    predictions: Mapping[str, Predictions]


def evaluate(selected: SelectedRun) -> EvaluatedRun:
    """Measure the graft and the baselines beside the pre-trained and the fine-tuned model."""
    from skillgraft.evaluation.metrics import compare
    from skillgraft.evaluation.predict import joined

    loaded = selected.finetuned.loaded
    cfg, rows, folder = loaded.inputs.cfg, loaded.inputs.rows, loaded.inputs.folder
    selected.graft.save(folder / GRAFT)
    predictions = predict_models(selected)
    own = predictions.pop(cfg.task.name)
    temperatures = scale_temperatures(loaded, own) if cfg.compare.temperature else {}
    for splits in own.values():  # after the temperatures, which are of the task's own classes
        for split, groups in rows.joined.items():
            splits[split] = joined(splits[split], groups)
    evaluation_set = loaded.evaluation_set
    metrics: dict[str, Any] = dict(compare(own, evaluation_set.labels(), cfg.task.metric))
    evaluation_set.write(own, folder / PREDICTIONS)
    for name, models in predictions.items():
        for model, measured in measure_other_task(loaded, name, models, folder).items():
            metrics[model][f"tasks/{name}"] = measured
    if temperatures:
        metrics["temperature"] = temperatures
    metrics["region"] = region_metrics(selected.graft)
    write_json(folder / METRICS, metrics)
    return EvaluatedRun(selected, metrics, own)


def predict_models(selected: SelectedRun) -> dict[str, dict[str, Predictions]]:
    """Return the predictions of every model, by task and model; those of θ_pre and θ_ft are there."""
    from skillgraft.core.activation import active
    from skillgraft.evaluation import prediction_files

    loaded, folder = selected.finetuned.loaded, selected.finetuned.folder
    predictions = {
        name: prediction_files.read_predictions(
            folder / f"predictions{loaded.suffix(name)}.parquet"
        )
        for name in loaded.evaluation_sets
    }
    with active(loaded.classifier, selected.graft):
        models = {"graft": loaded.predict_all_tasks()}
    models |= baselines.evaluate_baselines(selected)
    for model, by_task in models.items():
        for name, splits in by_task.items():
            predictions[name][model] = splits
    return predictions


def scale_temperatures(loaded: LoadedRun, own: dict[str, Predictions]) -> dict[str, float]:
    """Add the models with one temperature fitted on validation; return the temperatures."""
    from skillgraft.evaluation import calibration

    temperatures = {}
    for model in ("finetuned", "graft"):
        validation = loaded.evaluation_set.labels()["validation"]
        temperature = calibration.fit_temperature(own[model]["validation"], validation)
        temperatures[model] = temperature
        own[f"{model}_temperature_scaled"] = {
            split: calibration.scale(p, temperature) for split, p in own[model].items()
        }
    return temperatures


def measure_other_task(
    loaded: LoadedRun, name: str, predictions: Mapping[str, Predictions], folder: Path
) -> dict[str, Any]:
    """Write the test predictions of another task of the run; return each model's metrics on it."""
    from skillgraft.evaluation.metrics import compare

    examples = loaded.evaluation_sets[name]
    models = {model: {"test": splits["test"]} for model, splits in predictions.items()}
    examples.write(models, folder / TASK_PREDICTIONS.format(task=name))
    measured = compare(models, examples.labels(), examples.task.metric)
    return {model: splits["test"] for model, splits in measured.items()}


def region_metrics(graft: Graft) -> dict[str, Any]:
    """Return the region's size, and where in the model it lies."""
    from skillgraft.core.graft_facts import shares_by_layer, shares_by_module

    return {
        "size": graft.size,
        "sparsity": graft.sparsity,
        "graftable": graft.graftable,
        "layer": shares_by_layer(graft),
        "module": shares_by_module(graft),
    }
