"""Many small recordings, made of real ones: another build, process and time in each."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

SAMPLES = Path(__file__).parents[2] / "analysis/samples"
# Of a few rows each: a crash, a thread that did not come back, steered saves.
SMALL = ("crash-7.2-tcg.csv", "stuck-10.0-kvm.csv", "stuck-7.2-tcg.csv")
BROKEN_EVERY = 50


@cache
def text(name: str) -> str:
    return (SAMPLES / name).read_text(encoding="utf-8")


def recordings(folder: Path, count: int) -> Path:
    """So many, of which one in fifty is cut off within its first row."""
    for number in range(count):
        name = SMALL[number % len(SMALL)]
        changed = re.sub(r'""wall_clock"":""[^"]*""', f'""wall_clock"":""{number}""', text(name))
        path = folder / f"host{number % 7}" / f"{number:05}-{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(changed[:300] if number % BROKEN_EVERY == 7 else changed, encoding="utf-8")
    return folder
