"""Grafted checkpoints and task vectors that other tools load."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file

from skillgraft.config.choices import Kind
from skillgraft.core import patches
from skillgraft.core.graft import Graft
from skillgraft.export.checkpoint_card import card
from skillgraft.runtime import files
from skillgraft.runtime.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INFERENCE_SPEC = "skillgraft.json"  # beside a grafted checkpoint: how it classifies texts


def write_checkpoint(
    graft: Graft, source: Path, out: Path, run: DictConfig | None = None, delta: bool = False
) -> Path:
    """Write the pre-trained model with a graft as an ordinary transformers checkpoint, and return its folder.

    A graft with a head of its own goes with the encoder; the head lies beside it. Raises InputError where the
    graft does not belong to the model, or `out` is not empty.

    Args:
        graft: the graft to apply.
        source: the folder of the pre-trained model that it belongs to.
        out: a new or an empty folder.
        run: the configuration of the graft's run; with it, or a head, `load_applied` classifies texts.
        delta: whether the tensors are θ_ft − θ_pre in the region and zero elsewhere.
    """
    from skillgraft.models.pretrained import load_tokenizer

    if out.exists() and any(out.iterdir()):
        raise InputError(f"--out {out}: not empty")
    about = {**next(iter(graft.meta.get("parents", ())), {}), **graft.meta}
    model = load_matching_model(graft, about.get("finetune"), source)
    if delta:
        make_task_vector(graft, model)
    else:
        graft.apply(model)
    model.save_pretrained(out)
    load_tokenizer(source).save_pretrained(out)
    if graft.head:
        save_file(
            {name: tensor.contiguous() for name, tensor in graft.head.items()},
            out / "head.safetensors",
        )
    classifies = not delta and (run is not None or bool(graft.head))
    if classifies:
        files.write_json(out / INFERENCE_SPEC, inference_spec(about, run))
    (out / "README.md").write_text(card(graft, about, delta, classifies), encoding="utf-8")
    usual = (out / "README.md").stat().st_mode
    for file in out.glob("*.safetensors"):  # which are written as their owner's alone
        with suppress(PermissionError):
            file.chmod(usual)
    return out


def load_matching_model(graft: Graft, finetune: str | None, source: Path) -> PreTrainedModel:
    """Return the pre-trained model in the class that a graft was made with, or that its files fill.

    A head or pooler that the files lack is not made up.
    """
    from skillgraft.models.families import is_causal
    from skillgraft.models.pretrained import load_config, load_pretrained

    config = load_config(source)
    known = Kind(finetune) if finetune else Kind.linear if graft.head else None
    kind = known or (Kind.autoregressive if is_causal(config) else Kind.prompt)
    # nothing is computed, and eager is what every model has
    model, missing = load_pretrained(kind, source, config, "eager")
    if known is None and any("pooler." not in name for name in missing):
        model, missing = load_pretrained(Kind.linear, source, config, "eager")
    if any("pooler." in name for name in missing):
        cast(Any, model.base_model).pooler = None
    return model


def make_task_vector(graft: Graft, model: PreTrainedModel) -> None:
    """Make a pre-trained model its graft's task vector, in place: θ_ft − θ_pre in the region, else zero."""
    targets = patches.find_patches(graft, model)
    for tensor in model.state_dict().values():
        tensor.zero_()
    for target in targets:
        target.write(graft.values[target.name].to(target.before) - target.before)


def inference_spec(about: Mapping[str, Any], run: DictConfig | None) -> dict[str, Any]:
    """Return how a grafted checkpoint classifies texts, of its graft's `meta` and its run's configuration."""
    known = {name: about.get(name) for name in ("finetune", "pool", "norm", "labels")}
    if run is None:  # a head on the first token, or the mean of all, needs no more
        return {
            **known,
            "template": None,
            "verbalizer": None,
            "max_length": None,
            "attention": "eager",
        }
    task = cast(dict[str, Any], OmegaConf.to_container(run.task))
    told = {name: task[name] for name in ("labels", "template", "verbalizer", "max_length")}
    return {**known, **told, "attention": run.model.attention}
