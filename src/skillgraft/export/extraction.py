"""A graft taken from two checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from torch import Tensor

from skillgraft.config import packages
from skillgraft.core import digests, regions, top_k
from skillgraft.core.graft import Graft
from skillgraft.core.layout import FlatLayout
from skillgraft.models import checkpoint_files
from skillgraft.runtime.errors import InputError


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
        before, after = (CheckpointReader(folder, files) for folder in (pretrained, finetuned))
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
                    *(t.get(name).split(top_k.CHUNK) for t in (after, before)), strict=True
                ):
                    moved = new.float() if selector == "magnitude" else new.float() - old.float()
                    if not moved.isfinite().all():
                        raise InputError(
                            f"{name}: not a finite number in {pretrained} or {finetuned}"
                        )
                    yield moved.abs()

        layout = FlatLayout({name: before.shape(name) for name in names})
        count = regions.region_size(sparsity, layout.total)
        if selector == "random":
            found = regions.at_random(layout.total, count, seed)
        else:
            found = top_k.top_k_of_parts(parts, layout.total, count)
        indices = layout.split(found)
        values = {name: after.get(name).take(index).float() for name, index in indices.items()}
        kept = {name: before.get(name).take(index).float() for name, index in indices.items()}
        base = digests.digest_one_by_one(
            sorted(names), lambda name: before.get(name).float().view(before.shape(name))
        )
    meta = {
        "model": pretrained.name,
        "task": finetuned.name,
        "selector": selector,
        "requested_sparsity": sparsity,
        "seed": seed,
    }
    return Graft(indices, values, kept, layout.shapes, base, meta)


class CheckpointReader:
    """The tensors of a checkpoint by their names in graft files, read from its shards when asked for."""

    def __init__(self, folder: Path, files: ExitStack) -> None:
        from transformers import MODEL_MAPPING

        from skillgraft.models.pretrained import load_config

        shards = checkpoint_files.weight_files(folder)
        kind: Any = cast(Any, MODEL_MAPPING)[type(load_config(folder))]
        prefix = f"{kind.base_model_prefix}."
        self.folder = folder
        self.files: dict[str, tuple[Any, str]] = {}
        for shard in shards:
            try:
                handle = files.enter_context(safe_open(shard, framework="pt"))
            except SafetensorError as error:
                raise InputError(f"{shard}: not a complete safetensors file ({error})") from error
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
    patterns = OmegaConf.load(packages.CONF / "model" / "hub.yaml").blocks
    return list(dict.fromkeys([*patterns.prompt, *patterns.autoregressive]))
