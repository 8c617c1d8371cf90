"""Checkpoints larger than memory: a graft of two of them, read from the disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

from skillgraft.core.graft import Graft
from skillgraft.core.layout import FlatLayout

WIDTH, INNER, SHARDS = 2048, 5632, 10
SHAPES = {
    **{f"self_attn.{p}_proj": (WIDTH, WIDTH) for p in "qkvo"},
    **{f"mlp.{p}_proj": (INNER, WIDTH) for p in ("gate", "up")},
    "mlp.down_proj": (WIDTH, INNER),
}


def block(layer: int) -> dict[str, tuple[int, int]]:
    return {f"model.layers.{layer}.{name}.weight": shape for name, shape in SHAPES.items()}


def planted(name: str, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return where a tensor has moved by 2, and where by 1."""
    draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    places = torch.randint(shape[0] * shape[1], (300,), generator=draw).unique()
    places = places[torch.randperm(len(places), generator=draw)]
    return places[:100].sort().values, places[100:200].sort().values


def write_pair(folder: Path, layers: int) -> None:
    """Write two checkpoints in bf16, which differ by less than 0.01 but where something is planted."""
    base = (torch.randn(INNER * WIDTH) * 0.02).clamp(-0.5, 0.5).bfloat16()
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=layers, vocab_size=64
    )
    for side in ("before", "after"):
        (folder / side).mkdir()
        config.save_pretrained(folder / side)
        tensors = base if side == "before" else (base.float() * (1 + 2**-6)).bfloat16()
        for shard in range(SHARDS):
            part = {}
            for layer in range(shard, layers, SHARDS):
                for name, shape in block(layer).items():
                    part[name] = tensors[: shape[0] * shape[1]].clone()
                    for places, size in zip(planted(name, shape), (2.0, 1.0), strict=True):
                        part[name][places] = 0.0 if side == "before" else size
                    part[name] = part[name].view(shape)
            file = folder / side / f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
            save_file(part, file)


def anonymous(process: subprocess.Popen) -> int:
    """Return the largest anonymous resident memory, in bytes, that a process was seen with.

    Pages of mapped files are not counted: they go when memory is wanted for something else.
    """
    most = 0
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        most = max([most, *(int(v.split()[1]) for v in lines if v.startswith("RssAnon"))])
        time.sleep(0.01)
    return most * 1024


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads memory from /proc")
def test_extract_of_two_large_checkpoints_needs_little_memory(tmp_path: Path) -> None:
    """Two checkpoints of 4.1 GB each, in ten shards: the region is exact, ties go to the lower index."""
    layers = 40
    write_pair(tmp_path, layers)
    size = sum(f.stat().st_size for f in (tmp_path / "before").glob("*.safetensors"))
    assert size > 4e9
    program = str(Path(sys.executable).parent / "grafts")
    shapes = [item for layer in range(layers) for item in block(layer).items()]
    total = sum(a * b for _, (a, b) in shapes)
    tensors = len(shapes)
    count = 100 * tensors + 77 * tensors  # all that moved by 2, and some of what moved by 1
    line = [program, "extract", "before", "after", "--sparsity", repr(count / total)]
    with (tmp_path / "said.txt").open("w") as said:
        process = subprocess.Popen(
            [*line, "--out", "g.safetensors"],
            cwd=tmp_path,
            stdout=said,
            stderr=said,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # the disk is what takes the time
        )
        most = anonymous(process)
    assert process.returncode == 0, (tmp_path / "said.txt").read_text()
    assert most < 2 * 2**30
    graft = Graft.load(tmp_path / "g.safetensors")
    assert graft.size == count
    # independent: all that moved by 2, and in the graft's order of tensors the first that moved by 1
    order = FlatLayout(graft.shapes).shapes
    left = 77 * tensors
    for name, shape in order.items():
        large, small = planted(f"model.{name}", shape)
        wanted = torch.cat([large, small[:left]]).sort().values
        left = max(0, left - len(small))
        assert torch.equal(graft.indices[name].long(), wanted), name
    assert left == 0
    print(json.dumps({"bytes_each": size, "peak_anonymous_mib": most / 2**20}))
