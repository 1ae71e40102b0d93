"""The picture of `qtrace report` in README and docs: ``python -m scripts.report_pictures``.

From analysis/samples, drawn by Chromium; few colours keep it small.
"""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from tests.pictures.browser import Browser

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = "analysis/samples/all-pflash-7.2-kvm.parquet"
PICTURE = ROOT / "docs/report.png"
COLOURS = 48


def draw(folder: Path) -> None:
    """The finding's place in the timeline, from the verdict on."""
    page = folder / "report.html"
    subprocess.run(
        [sys.executable, "-m", "qtrace", "report", SAMPLE, "-o", str(page)], cwd=ROOT, check=False
    )
    with Browser(folder / "chromium") as browser:
        browser.size(1000, 900)
        browser.open(page)
        browser.key("n")
        below = browser.ask("document.getElementById('legend').getBoundingClientRect().bottom")
        below += browser.ask("window.scrollY")
        shot = browser.picture(folder / "shot.png").read_bytes()
    image = Image.open(io.BytesIO(shot)).convert("RGB").crop((0, 0, 1000, round(below) + 8))
    image.quantize(COLOURS).save(PICTURE, optimize=True)


if __name__ == "__main__":
    with TemporaryDirectory() as name:
        draw(Path(name))
