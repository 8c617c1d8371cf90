"""Grafts and checkpoints: a graft written into a model that other tools load, and one taken from two."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from skillgraft import checkpoint, config, region
from skillgraft.config import Kind
from skillgraft.errors import InputError
from skillgraft.graft import Graft

CARD = """# {model} with a graft of {task}

{size:,} of {graftable:,} graftable parameters ({sparsity:.2e}) have the fine-tuned values of a skillgraft
{selector} region; all others are those of the pre-trained model (base {base}).
"""
LOADER = """
The model is the encoder; the head that was trained with it is in `head.safetensors`, on the {pool} of
the last hidden states{scaled}. Classes in order: {labels}.

```python
encoder, head = AutoModel.from_pretrained(folder), load_file(f"{{folder}}/head.safetensors")
features = {features}
logits = features @ head["weight"].T + head["bias"]
```
"""
POOLED = {
    "first": "encoder(**batch).last_hidden_state[:, 0]",
    "mean": "(encoder(**batch).last_hidden_state * (m := batch['attention_mask'][..., None])).sum(1)"
    " / m.sum(1)",
    "last": "encoder(**batch).last_hidden_state[:, -1]  # of left-padded rows",
}


def apply(graft: Graft, source: Path, out: Path) -> Path:
    """Write the pre-trained model with a graft as an ordinary transformers checkpoint, and return its folder.

    A graft with a head of its own goes with the encoder; head and the way to use it lie beside it.
    Raises InputError where the graft does not belong to the model, or `out` is not empty.
    """
    from skillgraft.model import load_config, load_pretrained, load_tokenizer

    if out.exists() and any(out.iterdir()):
        raise InputError(f"--out {out}: not empty")
    kind = Kind(graft.meta.get("finetune") or Kind.prompt)
    model, _ = load_pretrained(kind, source, load_config(source))
    graft.apply(model)
    model.save_pretrained(out)
    load_tokenizer(source).save_pretrained(out)
    if graft.head:
        save_file(
            {name: tensor.contiguous() for name, tensor in graft.head.items()},
            out / "head.safetensors",
        )
    (out / "README.md").write_text(card(graft), encoding="utf-8")
    return out


def card(graft: Graft) -> str:
    """Return what a grafted checkpoint says of itself, in Markdown."""
    about = {name: graft.meta.get(name) or "several" for name in ("model", "task", "selector")}
    about["task"] = ", ".join(graft.tasks)
    text = CARD.format(
        **about, size=graft.size, graftable=graft.graftable, sparsity=graft.sparsity, base=graft.base[:12]
    )  # fmt: skip
    if not graft.head:
        return text
    pool, norm = graft.meta.get("pool") or "first", graft.meta.get("norm")
    features = POOLED[pool]
    if norm is not None:
        features = f"{norm:g} * torch.nn.functional.normalize({features}, dim=-1)"
    scaled = "" if norm is None else f", scaled to the norm {norm:g}"
    return text + LOADER.format(
        pool=pool, scaled=scaled, features=features, labels=", ".join(graft.meta.get("labels", ()))
    )


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
                    yield (
                        new.float() if selector == "magnitude" else new.float() - old.float()
                    ).abs()

        layout = region.Layout({name: before.shape(name) for name in names})
        count = region.region_size(sparsity, layout.total)
        if selector == "random":
            found = region.at_random(layout.total, count, seed)
        else:
            found = region.largest(parts, count)
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
