"""Find the files of a pre-trained model, and compute their digests.

A model is a folder in transformers' format, or one GGUF file, which contains the configuration and the
tokenizer. torch is not imported here, so that the id of a run is known before torch has loaded.
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
    """Return a model's folder or GGUF file: on this machine, inside a package, or downloaded from the Hub."""
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
    """Return the arguments of `pip install` for a model in a package: an extra of ours, or the package."""
    if cfg.name in (metadata("skillgraft").get_all("Provides-Extra") or []):
        return f'"skillgraft[{cfg.name}]"'
    package = cfg.path.removeprefix("package:").partition("/")[0]
    # only files are read from the package, so that its dependencies are not needed
    return f"--no-deps {package.replace('_', '-')}"


def gguf_file(path: Path) -> Path | None:
    """Return a model's GGUF file, or None for a folder in transformers' format.

    `path` is the file, or a folder without config.json that has one GGUF file.
    """
    if path.suffix == ".gguf":
        return path
    if (path / "config.json").is_file() or not (files := sorted(path.glob("*.gguf"))):
        return None
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise InputError(f"model.path={path}: {len(files)} GGUF files ({names}); name one of them")
    return files[0]


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model's folder, or its GGUF file.

    Raises InputError where there is none. Pickled weights (*.bin) are never read, because loading a
    pickle can run any code.
    """
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
    """Return the files of the tokenizer in a model's folder; a GGUF file contains its tokenizer."""
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
    """Return the SHA-256 digests of the pre-trained weights (with config.json) and of the tokenizer."""
    folder = locate(cfg)
    weights = [cached_digest(path, cache) for path in weight_files(folder)]
    if gguf_file(folder) is not None:  # one file holds everything, and its name does not count
        tokenizer = {"gguf": weights[0]}
    else:
        weights.append(file_digest(folder / "config.json"))
        tokenizer = {path.name: file_digest(path) for path in tokenizer_files(folder)}
    return {
        name: hashlib.sha256(json.dumps(value).encode()).hexdigest()
        for name, value in (("weights", weights), ("tokenizer", tokenizer))
    }
