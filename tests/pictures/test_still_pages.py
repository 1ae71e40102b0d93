"""Pages without a script, in a real Chromium: what `inspect` and `diff` draw for a browser.

Screenshots are kept below .cache/pictures, to be looked at.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qtrace.export.look_page import look_page
from qtrace.lab.guest import find_qemu
from tests.live.support.hung import hung_guest
from tests.pictures.browser import Browser
from tests.pictures.test_report import HOSTILE, PHONE, SHOTS, WIDE
from tests.unit.event_rows import NAME, recording, run, run_on_vcpu, schedule

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
STOCK, FIXED = (ROOT / f"analysis/samples/{n}-7.2-tcg.parquet" for n in ("stock", "rerouted"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as started:
        SHOTS.mkdir(parents=True, exist_ok=True)
        started.size(*WIDE)
        yield started


def qtrace(*words: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "qtrace", *map(str, words)],
        cwd=ROOT, capture_output=True, timeout=120,
    )  # fmt: skip


def opened(browser: Browser, page: Path) -> None:
    """It is shown, breaks no rule of its own, complains of nothing and asks for nothing."""
    browser.show(page)
    assert browser.errors == []
    assert browser.ask("window.violations") == []
    assert set(browser.requests) == {page.resolve().as_uri()}
    assert browser.ask("document.querySelectorAll('script, iframe, object, img').length") == 0


def text(browser: Browser, selector: str) -> list[str]:
    found: list[str] = browser.ask(
        f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.textContent)"
    )
    return found


def is_seen_whole(browser: Browser, name: str) -> None:
    """On a wide screen and on a phone, light and dark, nothing is wider than the window."""
    for dark in (False, True):
        for place, size in (("wide", WIDE), ("phone", PHONE)):
            browser.size(*size, dark=dark, phone=place == "phone")
            browser.drawn()
            assert browser.ask("document.documentElement.scrollWidth") <= size[0]
            browser.picture(SHOTS / f"{name}-{place}-{'dark' if dark else 'light'}.png")
    colours = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert colours == "rgb(20, 23, 26)"
    browser.size(*WIDE)


@pytest.mark.qemu
def test_of_a_hung_qemu_it_is_drawn_who_waits_for_whom(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "hung.html"
    with hung_guest(find_qemu(), "tcg") as guest:
        pid = guest.pid
        live = qtrace("inspect", "--pid", pid, "--format", "html")
        assert live.returncode == 1, live.stderr
        file = tmp_path / "hung.autopsy"
        assert qtrace("autopsy", "--pid", pid, "-o", file).returncode == 0
    page.write_bytes(live.stdout)
    opened(browser, page)
    (verdict,) = text(browser, "p.verdict")
    assert verdict.startswith(f"stuck:the main loop does not run: {pid} (main) waits in bdrv_drain")
    boxes = text(browser, ".graph a text:not(.faint)")
    assert any(box.startswith(f"{pid} (main)") for box in boxes), boxes
    assert "co_schedule_bh_cb" in boxes
    assert browser.ask("document.querySelectorAll('.graph path[marker-end]').length") >= 2
    # A click on a box unfolds its stack, without any script.
    folded = "[...document.querySelectorAll('details')].filter((one) => one.open).length"
    assert browser.ask(folded) == 0
    box = browser.ask(
        "(({x, y, width, height}) => [x + width / 2, y + height / 2])"
        "(document.querySelector('.graph .thread.bad rect').getBoundingClientRect())"
    )
    browser.click(*box)
    browser.until(f"{folded} === 1")
    assert any("bdrv_drain_all_begin" in one for one in text(browser, "details[open] pre"))
    is_seen_whole(browser, "inspect")
    later = tmp_path / "autopsy.html"
    later.write_bytes(qtrace("inspect", "--autopsy", file, "--format", "html").stdout)
    opened(browser, later)
    assert [one.split(",")[0] for one in text(browser, "p.verdict")] == [verdict.split(",")[0]]
    assert "an autopsy, made" in text(browser, "header p")[0]
    assert text(browser, ".graph a text:not(.faint)") == boxes


def test_what_changed_is_drawn_and_comes_first(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "diff.html"
    done = qtrace("diff", STOCK, FIXED, "-o", page)
    assert done.returncode == 0, done.stderr
    opened(browser, page)
    assert text(browser, "p.verdict")[0] == "none:nothing new came"
    assert any(f"{NAME}: vcpu-poll on vcpu" in one for one in text(browser, "p.verdict.good"))
    widths = browser.ask(
        "[...document.querySelectorAll('.bars .share')].map((one) => +one.getAttribute('width'))"
    )
    before, after = widths[:2]
    assert 150 < before < 180
    assert after == 0
    assert f"{NAME}" in text(browser, "td")
    is_seen_whole(browser, "diff")
    again = qtrace("diff", STOCK, FIXED, "-o", page)
    assert (again.returncode, b"--force" in again.stderr) == (2, True)
    assert qtrace("diff", STOCK, FIXED, "-o", tmp_path / "diff.txt").returncode == 3


def test_hostile_names_are_text(browser: Browser, tmp_path: Path) -> None:
    before, after = tmp_path / "a.csv", tmp_path / "b.csv"
    watched = [{"name": HOSTILE, "callback": "0x1", "call_sites": [], "context": "main"}]
    hostile = {"name": HOSTILE, "callback": 1, "thread": HOSTILE, "context": HOSTILE}
    recording(before, schedule(10, **hostile), run(20, **hostile), watched=watched)
    recording(after, schedule(10, **hostile), run_on_vcpu(20, **hostile), watched=watched)
    page = tmp_path / "diff.html"
    done = qtrace("diff", before, after, "-o", page)
    assert done.returncode in (0, 1), done.stderr
    opened(browser, page)
    assert any("<img src=x" in one for one in text(browser, "h2"))
    look = tmp_path / "look.html"
    look.write_bytes(look_page(hostile_look(), HOSTILE))
    opened(browser, look)
    assert any("<img src=x" in one for one in text(browser, ".graph text"))
    assert "\u202e" not in browser.ask("document.body.textContent")
    assert browser.ask("document.documentElement.scrollWidth") <= WIDE[0]


def hostile_look() -> dict[str, Any]:
    """As `qtrace inspect --format json` has it, of a target that names everything so."""
    party = {"kind": HOSTILE, "label": HOSTILE, "does": HOSTILE, "found": True}
    return {
        "target": {"pid": 1, "program": HOSTILE},
        "findings": [{"verdict": HOSTILE, "sentence": HOSTILE, "proof": HOSTILE}],
        "unclear": [HOSTILE],
        "remarks": [HOSTILE],
        "contexts": [{"name": HOSTILE, "ctx": "0x1", "tid": 1, "handlers": None,
                      "bottom_halves": [{"name": HOSTILE}]}],
        "threads": [{"tid": 1, "name": HOSTILE, "role": "main", "blocked_in": HOSTILE,
                     "waits_outside": HOSTILE, "polls": [{"context": HOSTILE}], "complete": False,
                     "stack": [HOSTILE]}],
        "jobs": [{"id": HOSTILE, "type": None, "status": None, "stack": [HOSTILE]}],
        "block": {"requests": [], "nodes": [], "coroutines": None},
        "waiting": {
            "parties": [{"key": HOSTILE + str(n), **party} for n in range(3)],
            # A circle, too.
            "edges": [{"who": HOSTILE + str(n), "whom": HOSTILE + str((n + 1) % 3), "what": HOSTILE}
                      for n in range(3)],
        },
    }  # fmt: skip
