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
    parameters nothing is in memory; `random` is not so, it shuffles all indices.
    Raises InputError for checkpoints that do not fit each other, or without a graftable parameter.

    Args:
        pretrained: the folder of the pre-trained checkpoint.
        finetuned: the folder of the fine-tuned checkpoint, with tensors of the same names and shapes.
        selector: movement, magnitude or random.
        sparsity: the fraction of the graftable parameters to keep, in [0, 1].
        patterns: regular expressions of graftable names; by default those of transformer blocks.
        seed: the seed of `random`.
    """
    if not 0 <= sparsity <= 1:
        raise InputError(f"--sparsity {sparsity}: expected 0 to 1")
    with ExitStack() as files:
        before, after = (CheckpointReader(folder, files) for folder in (pretrained, finetuned))
        layout = shared_layout(before, after, patterns or blocks())
        count = regions.region_size(sparsity, layout.total)
        if selector == "random":
            found = regions.at_random(layout.total, count, seed)
        else:
            moved = selector != "magnitude"
            found = top_k.top_k_of_parts(
                lambda: sizes(before, after, layout, moved), layout.total, count
            )
        indices = layout.split(found)
        values = {name: after.get(name).take(index).float() for name, index in indices.items()}
        kept = {name: before.get(name).take(index).float() for name, index in indices.items()}
        base = digests.digest_one_by_one(
            sorted(layout.shapes),
            lambda name: before.get(name).float().view(layout.shapes[name]),
        )
    meta = {
        "model": pretrained.name,
        "task": finetuned.name,
        "selector": selector,
        "requested_sparsity": sparsity,
        "seed": seed,
    }
    return Graft(indices, values, kept, layout.shapes, base, meta)


def shared_layout(
    before: CheckpointReader, after: CheckpointReader, patterns: Iterable[str]
) -> FlatLayout:
    """Return the layout of the graftable tensors of two checkpoints, in the first one's order.

    `patterns` are regular expressions of graftable names. Raises InputError where there is no
    graftable tensor, or where two shapes differ.
    """
    chosen = [re.compile(pattern) for pattern in patterns]
    names = [name for name in before.files if any(p.search(name) for p in chosen)]
    if not names:
        raise InputError(
            f"{before.folder}: no graftable parameter, by {[p.pattern for p in chosen]}"
        )
    for name in names:
        if before.shape(name) != after.shape(name):
            raise InputError(
                f"{name}: {before.shape(name)} in {before.folder}, "
                f"{after.shape(name)} in {after.folder}"
            )
    return FlatLayout({name: before.shape(name) for name in names})


def sizes(
    before: CheckpointReader, after: CheckpointReader, layout: FlatLayout, moved: bool
) -> Iterator[Tensor]:
    """Yield |Δ|, or |θ_ft| unless `moved`, of the layout's tensors in order, chunk by chunk.

    Raises InputError for a value that is not finite.
    """
    for name in layout.shapes:
        pairs = (tensors.get(name).split(top_k.CHUNK) for tensors in (after, before))
        for new, old in zip(*pairs, strict=True):
            values = new.float() - old.float() if moved else new.float()
            if not values.isfinite().all():
                raise InputError(
                    f"{name}: not a finite number in {before.folder} or {after.folder}"
                )
            yield values.abs()


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
