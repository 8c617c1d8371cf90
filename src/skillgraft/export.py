"""Grafts and checkpoints: a graft written into a model that other tools load, and one taken from two."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from skillgraft import checkpoint, config, patches, region, store
from skillgraft.config import Kind, Pool, TaskConfig
from skillgraft.data import Row
from skillgraft.errors import InputError
from skillgraft.graft import Graft
from skillgraft.graft_facts import tasks_of

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

    from skillgraft.model import Classifier
    from skillgraft.prompt import Encoder

RECIPE = "skillgraft.json"  # beside a grafted checkpoint: how it classifies texts
CARD = """# {model} with a graft of {task}

{size:,} of {graftable:,} graftable parameters ({sparsity:.2e}) have the fine-tuned values of a skillgraft
{selector} region; all others are those of the pre-trained model (base {base}).
"""
DELTA = """# {task} as a task vector of {model}

The fine-tuned less the pre-trained values of a skillgraft {selector} region, {size:,} of {graftable:,}
graftable parameters ({sparsity:.2e}), and zero everywhere else: to be added to the pre-trained model
(base {base}).
"""
LOADER = """
```python
from skillgraft import load_applied
classify = load_applied(folder)
probabilities = classify(["a text", "another"])  # (2, classes); pairs of texts as ("a", "b")
```

Classes in order: {labels}.
"""
HEAD = """
The model is the encoder; the head that was trained with it is in `head.safetensors`, on the {pool} of
the last hidden states{scaled}.{rows} Without skillgraft:

```python
encoder, head = AutoModel.from_pretrained(folder), load_file(f"{{folder}}/head.safetensors")
features = {features}
logits = features @ head["weight"].T + head["bias"]
```
"""
POOLED = {  # the features that a head reads, and which rows they are of
    Pool.first: ("encoder(**batch).last_hidden_state[:, 0]", ""),
    Pool.mean: (
        "(encoder(**batch).last_hidden_state * (m := batch['attention_mask'][..., None])).sum(1)"
        " / m.sum(1)",
        "",
    ),
    Pool.mask: (
        "encoder(**batch).last_hidden_state[batch['input_ids'] == tokenizer.mask_token_id]",
        " Rows are made by the template.",
    ),
    Pool.last: (
        "encoder(**batch).last_hidden_state[:, -1]",
        " Rows are made by the template, and padded on the left.",
    ),
}


def apply(
    graft: Graft, source: Path, out: Path, run: DictConfig | None = None, delta: bool = False
) -> Path:
    """Write the pre-trained model with a graft as an ordinary transformers checkpoint, and return its folder.

    A graft with a head of its own goes with the encoder; the head lies beside it. `run` is the
    configuration of the graft's run: with it, or a head, `load_applied` classifies texts. With
    `delta` the tensors are θ_ft − θ_pre in the region and zero elsewhere. Raises InputError where
    the graft does not belong to the model, or `out` is not empty.
    """
    from skillgraft.model import load_tokenizer

    if out.exists() and any(out.iterdir()):
        raise InputError(f"--out {out}: not empty")
    about = {**next(iter(graft.meta.get("parents", ())), {}), **graft.meta}
    model = fitting(graft, about.get("finetune"), source)
    if delta:
        subtract(graft, model)
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
        store.write_json(out / RECIPE, recipe(about, run))
    (out / "README.md").write_text(card(graft, about, delta, classifies), encoding="utf-8")
    usual = (out / "README.md").stat().st_mode
    for file in out.glob("*.safetensors"):  # which are written as their owner's alone
        with suppress(PermissionError):
            file.chmod(usual)
    return out


def fitting(graft: Graft, finetune: str | None, source: Path) -> PreTrainedModel:
    """Return the pre-trained model in the class that a graft was made with, or that its files fill.

    A head or pooler that the files lack is not made up.
    """
    from skillgraft.model import is_causal, load_config, load_pretrained

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


def subtract(graft: Graft, model: PreTrainedModel) -> None:
    """Make a pre-trained model its graft's task vector, in place: θ_ft − θ_pre in the region, else zero."""
    targets = patches.targets(graft, model)
    for tensor in model.state_dict().values():
        tensor.zero_()
    for target in targets:
        target.write(graft.values[target.name].to(target.before) - target.before)


def recipe(about: Mapping[str, Any], run: DictConfig | None) -> dict[str, Any]:
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


@dataclass(frozen=True)
class Applied:
    """A grafted checkpoint that classifies texts as its run did; `labels` are the classes in order."""

    classifier: Classifier
    encoder: Encoder
    labels: list[str]

    def __call__(self, texts: Sequence[str | tuple[str, str]], batch_size: int = 64) -> np.ndarray:
        """Return (N, classes) float32 class probabilities of texts, or of pairs of texts."""
        from skillgraft.evaluate import predict

        pairs = ((text, None) if isinstance(text, str) else text for text in texts)
        examples = self.encoder([Row(first, second, 0) for first, second in pairs])
        pad = self.encoder.tokenizer.pad_token_id or 0
        return predict(self.classifier, examples, pad, batch_size)


def load_applied(folder: str | Path) -> Applied:
    """Return the classifier of texts that `grafts apply` has written to a folder.

    Raises InputError for another folder, or where the task that the prompt is made of is not known.
    """
    from skillgraft import model, prompt

    folder = Path(folder)
    if not (folder / RECIPE).is_file():
        raise InputError(f"{folder}: no {RECIPE}: not written by `grafts apply` of a run or a head")
    known = store.read_json(folder / RECIPE)
    kind, pool = Kind(known["finetune"]), Pool(known["pool"]) if known["pool"] else None
    tokenizer, config = model.load_tokenizer(folder), model.load_config(folder)
    loaded, _ = model.load_pretrained(kind, folder, config, known["attention"])
    words, head = None, None
    if kind is Kind.linear:
        tensors = load_file(folder / "head.safetensors")
        head = nn.utils.skip_init(nn.Linear, *reversed(tensors["weight"].shape))
        head.load_state_dict(tensors)
    else:
        task = TaskConfig(folder.name, known["template"], known["labels"], known["verbalizer"])
        words = prompt.words_to_ids(task, tokenizer)
    classifier = model.Classifier(
        loaded, (), words=words, head=head, pool=pool, norm=known["norm"],
        causal=kind is Kind.autoregressive,
    )  # fmt: skip
    length = known["max_length"] or model.longest_input(classifier)
    encoder = prompt.encoder(tokenizer, kind, pool, known["template"], length)
    if encoder.template is None and (encoder.causal or pool is Pool.mask):
        raise InputError(f"{folder}: the template is not known; apply the run, not its graft alone")
    return Applied(classifier.eval(), encoder, known["labels"])


def card(graft: Graft, about: Mapping[str, Any], delta: bool, classifies: bool) -> str:
    """Return what a checkpoint that `apply` has written says of itself, in Markdown."""
    told = {name: about.get(name) or "several" for name in ("model", "selector")}
    told["task"] = ", ".join(tasks_of(graft))
    text = (DELTA if delta else CARD).format(
        **told, size=graft.size, graftable=graft.graftable, sparsity=graft.sparsity, base=graft.base[:12]
    )  # fmt: skip
    if delta:
        return text
    if classifies and about.get("labels"):
        text += LOADER.format(labels=", ".join(about["labels"]))
    if graft.head:
        pool, norm = Pool(about.get("pool") or Pool.first), about.get("norm")
        features, rows = POOLED[pool]
        if norm is not None:
            features = f"{norm:g} * torch.nn.functional.normalize({features}, dim=-1)"
        scaled = "" if norm is None else f", scaled to the norm {norm:g}"
        text += HEAD.format(pool=pool.value, scaled=scaled, rows=rows, features=features)
    return text


def extract(
    pretrained: Path,
    finetuned: Path,
    selector: str,
    sparsity: float,
    patterns: Iterable[str] = (),
    seed: int = 0,
) -> Graft:
    """Return a graft of two checkpoints by a selector that reads no data: movement, magnitude or random.

    The files stay on the disk: beside one tensor, as fp32, and 24 bytes for each of twice the region's
    entries nothing is in memory; `random` is not so, it shuffles all indices.
    Raises InputError for checkpoints that do not fit each other, or without a graftable parameter.
    """
    if not 0 <= sparsity <= 1:
        raise InputError(f"--sparsity {sparsity}: expected 0 to 1")
    chosen = [re.compile(pattern) for pattern in patterns or blocks()]
    with ExitStack() as files:
        before, after = (Tensors(folder, files) for folder in (pretrained, finetuned))
        names = [name for name in before.files if any(p.search(name) for p in chosen)]
        if not names:
            raise InputError(
                f"{pretrained}: no graftable parameter, by {[p.pattern for p in chosen]}"
            )
        for name in names:
            if before.shape(name) != after.shape(name):
                raise InputError(
                    f"{name}: {before.shape(name)} in {pretrained}, {after.shape(name)} in {finetuned}"
                )

        def parts() -> Iterator[Tensor]:
            for name in names:
                for new, old in zip(
                    *(t.get(name).split(region.CHUNK) for t in (after, before)), strict=True
                ):
                    moved = new.float() if selector == "magnitude" else new.float() - old.float()
                    if not moved.isfinite().all():
                        raise InputError(
                            f"{name}: not a finite number in {pretrained} or {finetuned}"
                        )
                    yield moved.abs()

        layout = region.Layout({name: before.shape(name) for name in names})
        count = region.region_size(sparsity, layout.total)
        if selector == "random":
            found = region.at_random(layout.total, count, seed)
        else:
            found = region.largest(parts, layout.total, count)
        indices = layout.split(found)
        values = {name: after.get(name).take(index).float() for name, index in indices.items()}
        kept = {name: before.get(name).take(index).float() for name, index in indices.items()}
        base = region.digest_one_by_one(
            sorted(names), lambda name: before.get(name).float().view(before.shape(name))
        )
    meta = {
        "model": pretrained.name,
        "task": finetuned.name,
        "selector": selector,
        "asked_sparsity": sparsity,
        "seed": seed,
    }
    return Graft(indices, values, kept, layout.shapes, base, meta)


class Tensors:
    """The tensors of a checkpoint by their names in graft files, read from its shards when asked for."""

    def __init__(self, folder: Path, files: ExitStack) -> None:
        from transformers import MODEL_MAPPING

        from skillgraft.model import load_config

        shards = checkpoint.weight_files(folder)
        kind: Any = cast(Any, MODEL_MAPPING)[type(load_config(folder))]
        prefix = f"{kind.base_model_prefix}."
        self.folder = folder
        self.files: dict[str, tuple[Any, str]] = {}
        for shard in shards:
            try:
                handle = files.enter_context(safe_open(shard, framework="pt"))
            except SafetensorError as error:
                raise InputError(f"{shard}: not a whole safetensors file ({error})") from error
            self.files |= {name.removeprefix(prefix): (handle, name) for name in handle.keys()}  # noqa: SIM118

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        if name not in self.files:
            raise InputError(f"{self.folder}: no parameter {name}")
        handle, full = self.files[name]
        return tuple(handle.get_slice(full).get_shape())

    def get(self, name: str) -> Tensor:
        """Return a tensor as a flat view of the file's own pages, which are read when they are used."""
        handle, full = self.files[name]
        return handle.get_tensor(full).view(-1)


def blocks() -> list[str]:
    """Return the patterns of graftable parameters that conf/model has for every kind of model."""
    patterns = OmegaConf.load(config.CONF / "model" / "hub.yaml").blocks
    return list(dict.fromkeys([*patterns.prompt, *patterns.autoregressive]))
