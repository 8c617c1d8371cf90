"""The report page in a real browser: it loads without an error, its table sorts, light and dark differ."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from skillgraft.analysis.report.page import write

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from runs import TINY, make

BROWSER = shutil.which("chromium")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium (Debian: chromium)")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    for seed in (13, 100, 21):  # as text, 100 would come first
        make(folder / "runs", *TINY, "task=toy_film", "graft=movement", f"seed={seed}")
    return write(folder / "runs", folder / "out")


def browse(page: Path, *options: str, at: str = "") -> str:
    """Return what headless Chromium prints of a page, and fail where its console has a message."""
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--enable-logging=stderr", f"--user-data-dir={page.parent.parent / 'profile'}", *options,
         page.as_uri() + at],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    assert not re.findall(r".*CONSOLE.*", done.stderr)
    return done.stdout


def seeds(dom: str) -> list[str]:
    """Return the seeds of the rows that are to be seen, in the page's order."""
    rows = re.findall(r"<tr(?: hidden=\"\")?>.*?</tr>", dom.split("<tbody>")[1], re.DOTALL)
    return [
        found[0]
        for row in rows
        if "hidden" not in row and (found := re.findall(r"<td>(13|21|100)</td>", row))
    ]


def test_console_errors_are_found(page: Path) -> None:
    broken = page.with_name("broken.html")
    broken.write_text(
        page.read_text().replace("function filter() {", "function filter() { nothing();")
    )
    with pytest.raises(AssertionError, match="nothing is not defined"):
        browse(broken, "--dump-dom")


def test_the_table_sorts_and_filters(page: Path) -> None:
    assert seeds(browse(page, "--dump-dom")) == ["100", "13", "21"]  # by id
    assert seeds(browse(page, "--dump-dom", at="#sort=seed")) == ["13", "21", "100"]
    down = browse(page, "--dump-dom", at="#sort=seed&descending")
    assert seeds(down) == ["100", "21", "13"]
    assert down.count('aria-sort="descending"') == 1
    some = browse(page, "--dump-dom", at="#filter=movement+21")
    assert seeds(some) == ["21"]
    assert "1 of 3 runs" in some


def test_a_click_sorts(page: Path) -> None:
    clicked = page.with_name("clicked.html")
    click = "for (let i = 0; i < 2; i++) heads.find((h) => h.textContent === 'seed').firstChild.click();"
    clicked.write_text(page.read_text().replace("</script>", f"{click}</script>"))
    assert seeds(browse(clicked, "--dump-dom")) == ["100", "21", "13"]


def test_light_dark_and_print(page: Path, tmp_path: Path) -> None:
    corner = {}
    for mode in ("light", "dark"):
        shot = tmp_path / f"{mode}.png"
        scheme = ["--blink-settings=preferredColorScheme=" + {"dark": "0", "light": "1"}[mode]]
        browse(page, *scheme, "--window-size=1200,1600", f"--screenshot={shot}")
        pixels = imread(shot)
        corner[mode] = float(pixels[0, 0, :3].mean())
        assert pixels.std() > 0.05  # not an empty page
    assert corner["light"] > 0.95
    assert corner["dark"] < 0.15
    browse(page, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
