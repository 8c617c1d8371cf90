"""Progress bars are drawn on a terminal, and nowhere else; a job's context says where."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from runs import grafts
from skillgraft.cli import job_context
from skillgraft.runtime import progress
from skillgraft.runtime.job import JobContext
from skillgraft.store import job_state


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal, outside of CI."""
    # not sys.stderr itself, which pytest puts back after the fixtures
    process = SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True), argv=["grafts"])
    monkeypatch.setattr(job_context, "sys", process)
    monkeypatch.delenv("CI", raising=False)


@pytest.mark.parametrize(
    ("requested", "possible", "expected"),
    [(None, True, True), (None, False, False), (True, False, True), (False, True, False)],
)
def test_bars_are_shown_as_requested(
    requested: bool | None, possible: bool, expected: bool
) -> None:
    assert JobContext(progress=possible).shows_progress(requested) is expected


def test_a_run_that_python_code_asks_for_shows_no_bars() -> None:
    assert JobContext() == JobContext((), None, None, False, None, (), False)


def test_bars_are_drawn_on_a_terminal_alone(
    terminal: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert job_context.on_terminal()
    monkeypatch.setenv("CI", "true")
    assert not job_context.on_terminal()
    monkeypatch.setenv("CI", "")
    assert job_context.on_terminal()
    monkeypatch.setattr(job_context.sys.stderr, "isatty", lambda: False)
    assert not job_context.on_terminal()


def test_bars_that_are_unwanted_are_not_drawn(
    terminal: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert job_context.of_grafts(no_progress=False).progress
    assert not job_context.of_grafts(no_progress=True).progress


def test_no_progress_is_for_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    of_grafts = job_context.of_grafts
    monkeypatch.setattr(
        job_context, "of_grafts", lambda unwanted: asked.append(unwanted) or of_grafts(unwanted)
    )
    monkeypatch.setattr(job_state, "unfinished", lambda _: [])
    for options in ([], ["--no-progress"], []):
        grafts(*options, "list", "nothing")
    assert asked == [False, True, False]


def test_a_bar_says_what_it_is_of_and_gives_all_items(capsys: pytest.CaptureFixture) -> None:
    assert list(progress.bar(iter("abc"), "letters", 3, on=True)) == ["a", "b", "c"]
    said = capsys.readouterr()
    assert said.out == ""
    assert "letters" in said.err
    assert "0/3" in said.err
    items = iter("abc")
    assert progress.bar(items, "letters", 3, on=False) is items
    assert capsys.readouterr().err == ""
