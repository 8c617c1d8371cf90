"""The selectors by name: ours, and those that another package brings by an entry point."""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from runs import TINY, command, composed
from skillgraft.config import packages, selectors
from skillgraft.core.graft import Graft
from skillgraft.runtime.errors import InputError

THEIRS = '''
"""graft=strided: every n-th parameter."""

from dataclasses import dataclass

from skillgraft.config.fields import between
from skillgraft.config.selector_options import SelectorOptions


@dataclass
class Options(SelectorOptions):
    """The distance of two parameters that are chosen."""

    stride: int = between(1)


def select(selection):
    """Return the first indices that are multiples of the stride."""
    import torch

    return torch.arange(selection.size) * selection.options.stride
'''
YAML = "selector: strided\nstride: 3   # every third parameter\n"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that has a selector, as pip leaves it in a folder, and its user's configuration."""
    site = tmp_path / "site"
    info = site / "their_selectors-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "their_selectors.py").write_text(THEIRS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-selectors\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[skillgraft.selectors]\nstrided = their_selectors\n")
    (tmp_path / "conf" / "graft").mkdir(parents=True)
    (tmp_path / "conf" / "graft" / "strided.yaml").write_text(YAML)
    path = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    return tmp_path


def test_a_selector_of_another_package(installed: Path) -> None:
    """It needs an entry point, a module with options and a function, and a YAML of its user's."""
    theirs = (f"--config-dir={installed / 'conf'}", "graft=strided", *TINY, "store=runs")
    wrong = command(*theirs, "graft.stride=0", cwd=installed)
    assert wrong.returncode != 0
    assert wrong.stderr == "skillgraft: graft.stride=0: expected a value at least 1\n"
    unknown = command(*theirs, "graft.strid=2", cwd=installed)
    assert unknown.stderr.count("\n") == 1
    assert "Did you mean 'graft.stride'?" in unknown.stderr
    done = command(*theirs, "sparsity=1e-3", cwd=installed)
    assert done.returncode == 0, done.stderr
    (folder,) = (f for f in (installed / "runs").iterdir() if f.name.startswith("toy_film-"))
    assert folder.name.startswith("toy_film-tiny-strided-s0.001-seed13-")
    region = Graft.load(folder / "graft.safetensors").region()
    assert torch.equal(region, torch.arange(region.numel()) * 3)
    assert region.numel() > 100
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert stored["graft"] == {"selector": "strided", "size_from": None, "stride": 3}
    status = yaml.safe_load((folder / "status.json").read_text())
    kept = {name: value for name, value in status["config"].items() if name.startswith("graft.")}
    assert kept == {"graft.selector": "strided", "graft.stride": 3}


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package whose selector cannot be imported."""
    entry = importlib.metadata.EntryPoint("broken", "no_such_module", selectors.GROUP)
    monkeypatch.setattr(selectors, "entry_points", lambda **_: [entry])
    selectors.modules.cache_clear()
    yield
    monkeypatch.undo()
    selectors.modules.cache_clear()
    selectors.union.cache_clear()


@pytest.mark.usefixtures("broken")
def test_a_selector_that_cannot_be_imported_stops_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    selectors.union.cache_clear()
    assert "steps" in set(selectors.union().__dataclass_fields__)
    assert "graft=broken: cannot be imported (ModuleNotFoundError" in caplog.text
    with pytest.raises(InputError, match=r"^graft=broken: cannot be imported .*no_such_module"):
        selectors.options_of("broken")


def test_every_selector_has_a_file_of_its_name() -> None:
    files = {file.stem for file in (packages.CONF / "graft").glob("[!_]*.yaml")}
    assert set(selectors.modules()) == files


@pytest.mark.parametrize("name", sorted(selectors.modules()))
def test_a_selector_has_its_own_options_alone(name: str) -> None:
    """Its YAML has all of them, and a run that uses the selector has no others."""
    content = yaml.safe_load((packages.CONF / "graft" / f"{name}.yaml").read_text())
    given = [f"graft.{key}=[a]" if key == "paths" else f"graft.{key}=1" for key in content
             if content[key] == "???"]  # fmt: skip
    cfg = composed(f"graft={name}", *given)
    assert set(selectors.own_options(cfg)) == {"size_from", *content}  # type: ignore[call-overload]
    assert content["selector"] == name


def test_options_need_no_torch() -> None:
    """Else every command would wait for it."""
    code = (
        "import sys\n"
        "from skillgraft.config import compose, selectors\n"
        "compose.register(); selectors.union()\n"
        "assert not {'torch', 'transformers', 'pandas'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_nearest_selector_is_named() -> None:
    with pytest.raises(InputError, match=r"^graft.selector='lerned': .*Did you mean 'learned'\?$"):
        selectors.find("lerned")


def test_a_configuration_goes_to_another_process() -> None:
    cfg = composed("graft=attribution")
    assert pickle.loads(pickle.dumps(cfg)) == cfg
