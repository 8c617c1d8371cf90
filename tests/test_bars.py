"""Progress bars are drawn on a terminal, and nowhere else."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig

from skillgraft.runtime import progress


@pytest.mark.parametrize(
    ("asked", "terminal", "ci", "launcher", "expected"),
    [
        (None, True, "", None, True),
        (None, True, "", "hydra._internal.core_plugins.basic_launcher.BasicLauncher", True),
        (None, True, "", "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", False),
        (None, True, "true", None, False),
        (None, False, "", None, False),
        (True, False, "true", None, True),
        (False, True, "", None, False),
    ],
)  # fmt: skip
def test_bars_are_drawn_on_a_terminal_alone(
    asked: bool | None, terminal: bool, ci: str, launcher: str | None, expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: terminal))
    monkeypatch.setenv("CI", ci)
    if launcher is not None:
        monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
        settings = SimpleNamespace(launcher=SimpleNamespace(_target_=launcher))
        monkeypatch.setattr(HydraConfig, "get", lambda: settings)
    assert progress.shown(asked) is expected


def test_bars_that_are_unwanted_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setenv("CI", "")
    assert progress.shown()
    monkeypatch.setattr(progress, "unwanted", [True])
    assert not progress.shown()


def test_a_bar_says_what_it_is_of_and_gives_all_items(capsys: pytest.CaptureFixture) -> None:
    assert list(progress.bar(iter("abc"), "letters", 3, on=True)) == ["a", "b", "c"]
    said = capsys.readouterr()
    assert said.out == ""
    assert "letters" in said.err
    assert "0/3" in said.err
    items = iter("abc")
    assert progress.bar(items, "letters", 3, on=False) is items
    assert capsys.readouterr().err == ""
