"""Where a pre-trained model's files are, and their digests. Needs no torch.

A model is a folder as transformers writes it, or one GGUF file, which has config and tokenizer too.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import metadata
from pathlib import Path

from skillgraft.config.packages import package_path
from skillgraft.config.schema import ModelConfig
from skillgraft.runtime.digests import cached_digest, file_digest
from skillgraft.runtime.errors import InputError, reason


def locate(cfg: ModelConfig) -> Path:
    """Return the model's folder or GGUF file: given, inside a package, or fetched from the hub."""
    path = cfg.path
    if path.startswith("package:"):
        return package_path(path, "model.path", f" Try: pip install {requirement(cfg)}")
    folder = Path(path).expanduser()
    if folder.is_dir() or (folder.suffix == ".gguf" and folder.is_file()):
        return folder
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or folder.suffix == ".gguf":
        kind = "file" if folder.suffix == ".gguf" else "folder"
        raise InputError(f"model.path={path}: no such {kind}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(path, revision=cfg.revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"model.path={path}: no folder, and not found on the Hub ({reason(error)}); "
            "with a local copy give model=hub model.path=FOLDER"
        ) from error


def requirement(cfg: ModelConfig) -> str:
    """Return what to install for a model in a package: our extra of its name, or the package alone."""
    if cfg.name in (metadata("skillgraft").get_all("Provides-Extra") or []):
        return f'"skillgraft[{cfg.name}]"'
    package = cfg.path.removeprefix("package:").partition("/")[0]
    return f"--no-deps {package.replace('_', '-')}"  # its dependencies are not ours


def gguf_file(path: Path) -> Path | None:
    """Return the GGUF file that a path is, or the only one of a folder without config.json, or None."""
    if path.suffix == ".gguf":
        return path
    if (path / "config.json").is_file() or not (files := sorted(path.glob("*.gguf"))):
        return None
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise InputError(f"model.path={path}: {len(files)} GGUF files ({names}); name one of them")
    return files[0]


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model's folder, or its GGUF file; pickled weights are refused."""
    if (file := gguf_file(folder)) is not None:
        if not file.is_file():
            raise InputError(f"model.path={file}: no such file")
        return [file]
    if not (folder / "config.json").is_file():
        raise InputError(f"model.path={folder}: no config.json")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        other = sorted(p.name for p in folder.glob("*.bin"))
        found = f" (found {', '.join(other)}; only safetensors are read)" if other else ""
        raise InputError(f"model.path={folder}: no *.safetensors{found}")
    return files


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files that make the tokenizer; a GGUF file brings its own."""
    if (file := gguf_file(folder)) is not None:
        return [file]
    names = (
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "vocab.json",
        "merges.txt",
        "spm.model",  # DeBERTa v2 and v3
        "sentencepiece.bpe.model",
        "spiece.model",
        "tokenizer.model",
        "added_tokens.json",
        "special_tokens_map.json",
    )
    return [folder / name for name in names if (folder / name).is_file()]


def digests(cfg: ModelConfig, cache: Path) -> dict[str, str]:
    """Return the digests of the base weights (with their config) and of the tokenizer."""
    folder = locate(cfg)
    weights = [cached_digest(path, cache) for path in weight_files(folder)]
    if gguf_file(folder) is not None:  # all in one file, whose name is nobody's business
        tokenizer = {"gguf": weights[0]}
    else:
        weights.append(file_digest(folder / "config.json"))
        tokenizer = {path.name: file_digest(path) for path in tokenizer_files(folder)}
    return {
        name: hashlib.sha256(json.dumps(value).encode()).hexdigest()
        for name, value in (("weights", weights), ("tokenizer", tokenizer))
    }
