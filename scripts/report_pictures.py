"""The pictures of pages in README and docs: ``python -m scripts.report_pictures``.

Of analysis/samples, and of a QEMU that hangs; drawn by Chromium; few colours keep them small.
"""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from qtrace.lab.guest import find_qemu
from tests.live.support.hung import hung_guest
from tests.pictures.browser import Browser

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = "analysis/samples/all-pflash-7.2-kvm.parquet"
PICTURE, INSPECT = ROOT / "docs/report.png", ROOT / "docs/inspect.png"
COLOURS = 48


def draw_report(folder: Path) -> None:
    """The finding's place in the timeline, from the verdict on."""
    page = folder / "report.html"
    subprocess.run(
        [sys.executable, "-m", "qtrace", "report", SAMPLE, "-o", str(page)], cwd=ROOT, check=False
    )
    with Browser(folder / "chromium") as browser:
        browser.size(1000, 900)
        browser.open(page)
        browser.key("n")
        keep(browser, "#legend", PICTURE)


def draw_inspect(folder: Path) -> None:
    """Who waits for whom in a QEMU that hangs in its shutdown, with the main thread's stack."""
    page = folder / "inspect.html"
    with hung_guest(find_qemu(), "tcg") as guest, page.open("wb") as file:
        words = ["inspect", "--pid", str(guest.pid), "--format", "html"]
        subprocess.run([sys.executable, "-m", "qtrace", *words], cwd=ROOT, check=False, stdout=file)
    with Browser(folder / "chromium") as browser:
        browser.size(1000, 900)
        browser.show(page)
        browser.ask("location = document.querySelector('.graph a:has(.bad)').getAttribute('href')")
        browser.drawn()
        keep(browser, "details[open]", INSPECT)


def keep(browser: Browser, last: str, target: Path) -> None:
    """A picture of the page down to an element."""
    below = browser.ask(f"document.querySelector('{last}').getBoundingClientRect().bottom")
    below += browser.ask("window.scrollY")
    with TemporaryDirectory() as name:
        shot = browser.picture(Path(name) / "shot.png").read_bytes()
    image = Image.open(io.BytesIO(shot)).convert("RGB").crop((0, 0, 1000, round(below) + 8))
    image.quantize(COLOURS).save(target, optimize=True)


if __name__ == "__main__":
    for draw in (draw_report, draw_inspect):
        with TemporaryDirectory() as name:
            draw(Path(name))
