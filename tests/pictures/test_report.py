"""`qtrace report` in a real Chromium: it opens, zooms, jumps to findings, and lets nothing out.

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

from tests.pictures.browser import Browser
from tests.unit.event_rows import (
    NAME,
    attach,
    detach,
    lost,
    recording,
    run,
    run_on_vcpu,
    schedule,
    write,
)

pytestmark = [pytest.mark.browser]

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "analysis/samples"
SHOTS = ROOT / ".cache/pictures"
FILES = sorted(path.name for path in SAMPLES.iterdir() if path.suffix in (".csv", ".parquet"))
WIDE, PHONE = (1300, 900), (390, 844)
HOSTILE = (
    "<img src=x onerror=alert(1)></script><script>alert(2)</script>\u202e\x1b[31m" + "n" * 10_000
)
# How much of a picture is not of the colour of its page, in percent.
INKED = """(() => {
  const canvas = document.getElementById('timeline'), pen = canvas.getContext('2d');
  const {data} = pen.getImageData(0, 0, canvas.width, canvas.height);
  let other = 0;
  for (let at = 0; at < data.length; at += 4) {
    if (data[at] !== data[0] || data[at + 1] !== data[1] || data[at + 2] !== data[2]) other++;
  }
  return other / (data.length / 4) * 100;
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as started:
        SHOTS.mkdir(parents=True, exist_ok=True)
        started.size(*WIDE)
        yield started


def report(folder: Path, *traces: Path) -> Path:
    """The page of these traces."""
    page = folder / "report.html"
    done = subprocess.run(
        [sys.executable, "-m", "qtrace", "report", *map(str, traces), "-o", str(page), "--force"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode in (0, 1, 4), done.stderr
    return page


def is_sound(browser: Browser, page: Path) -> None:
    """It is drawn, breaks no rule of its own, complains of nothing and asks for nothing."""
    assert browser.ask("document.documentElement.dataset.ready") == "yes"
    assert browser.errors == []
    assert browser.ask("window.violations") == []
    assert set(browser.requests) == {page.resolve().as_uri()}


def view(browser: Browser) -> tuple[float, float]:
    found = browser.ask("(({from, to}) => [from, to])(document.getElementById('timeline').dataset)")
    return float(found[0]), float(found[1])


def corner(browser: Browser, right: float, down: float) -> tuple[float, float]:
    """A place of the timeline, in the window."""
    box = browser.ask(
        "(({x, y}) => [x, y])(document.getElementById('timeline').getBoundingClientRect())"
    )
    return box[0] + right, box[1] + down


def details(browser: Browser) -> str:
    return str(browser.ask("document.getElementById('details').innerText"))


def data(browser: Browser) -> Any:
    return json.loads(browser.ask("document.getElementById('data').textContent"))


@pytest.mark.parametrize("name", FILES)
def test_every_sample_opens_and_each_finding_leads_to_its_place(
    browser: Browser, tmp_path: Path, name: str
) -> None:
    page = report(tmp_path, SAMPLES / name)
    assert page.stat().st_size <= 5_000_000
    browser.open(page)
    (one,) = data(browser)["recordings"]
    assert browser.ask(INKED) > 0.2
    for number, finding in enumerate(one["findings"]["shown"][:12]):
        browser.ask(f"document.querySelectorAll('#findings button')[{number}].click()")
        browser.drawn()
        begin, end = view(browser)
        assert begin < finding["begin"] <= finding["end"] < end
        assert browser.ask("document.activeElement.id") == "timeline"
        shown = details(browser)
        assert any(str(row) in shown for row in finding["rows"])
        if finding["instance"] is not None and "explain" in shown:
            assert f"explain {one['path']} {finding['instance']}" in shown
    is_sound(browser, page)


@pytest.fixture(scope="module")
def pflash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(tmp_path_factory.mktemp("pflash"), SAMPLES / "all-pflash-7.2-kvm.parquet")


def test_it_is_moved_and_zoomed_by_keys_buttons_wheel_and_pointer(
    browser: Browser, pflash: Path
) -> None:
    browser.size(*WIDE)
    browser.open(pflash)
    whole = view(browser)
    browser.ask("document.getElementById('timeline').focus()")
    browser.key("+")
    closer = view(browser)
    assert (closer[1] - closer[0]) == pytest.approx(0.6 * (whole[1] - whole[0]))
    browser.key("ArrowRight")
    assert view(browser)[0] > closer[0]
    browser.key("ArrowLeft")
    assert view(browser)[0] == pytest.approx(closer[0], abs=10)
    browser.key("0")
    assert view(browser) == pytest.approx(whole)
    browser.ask("document.getElementById('zoom-in').click()")
    browser.drawn()
    half = view(browser)
    assert half[1] - half[0] == pytest.approx(0.5 * (whole[1] - whole[0]))
    browser.ask("document.getElementById('timeline').scrollIntoView()")
    x, y = corner(browser, 700, 100)
    browser.mouse("mouseWheel", x, y, deltaX=0, deltaY=-400, modifiers=2)
    browser.until(f"document.getElementById('timeline').dataset.from != '{half[0]}'")
    wheeled = view(browser)
    assert wheeled[1] - wheeled[0] < half[1] - half[0]
    browser.mouse("mousePressed", x, y, button="left", buttons=1)
    browser.mouse("mouseMoved", x - 200, y, button="left", buttons=1)
    browser.mouse("mouseReleased", x - 200, y, button="left")
    browser.drawn()
    dragged = view(browser)
    assert dragged[0] > wheeled[0]
    assert dragged[1] - dragged[0] == pytest.approx(wheeled[1] - wheeled[0])
    is_sound(browser, pflash)


def test_keys_go_from_finding_to_finding_and_from_run_to_run(
    browser: Browser, pflash: Path
) -> None:
    browser.open(pflash)
    (one,) = data(browser)["recordings"]
    browser.key("n")
    assert one["findings"]["shown"][0]["sentence"] in details(browser)
    assert NAME in details(browser)
    browser.key("n")
    assert one["findings"]["shown"][1]["sentence"] in details(browser)
    browser.key("p")
    first = details(browser)
    assert one["findings"]["shown"][0]["sentence"] in first
    browser.key("]")
    assert "job_exit" in details(browser)
    browser.key("[")
    assert first.endswith(details(browser))
    browser.key("Escape")
    assert details(browser) == ""
    is_sound(browser, pflash)


def test_a_click_on_a_bar_selects_it(browser: Browser, pflash: Path) -> None:
    """The finding's bar, wherever it stands: it is in the middle of the view, in its lane."""
    browser.size(*WIDE)
    browser.open(pflash)
    browser.key("n")
    chosen = details(browser)
    browser.key("Escape")
    place = browser.ask("""(() => {
      const canvas = document.getElementById('timeline');
      const pen = canvas.getContext('2d'), ratio = window.devicePixelRatio;
      const style = getComputedStyle(document.documentElement);
      const wanted = style.getPropertyValue('--vcpu-poll').trim();
      const [red, green, blue] = [1, 3, 5].map((at) => parseInt(wanted.slice(at, at + 2), 16));
      const {data} = pen.getImageData(0, 0, canvas.width, canvas.height);
      for (let at = 0; at < data.length; at += 4) {
        if (data[at] === red && data[at + 1] === green && data[at + 2] === blue) {
          const place = at / 4;
          return [place % canvas.width / ratio + 5, Math.floor(place / canvas.width) / ratio + 4];
        }
      }
      return null;
    })()""")
    assert place is not None
    browser.click(*corner(browser, *place))
    seen = details(browser)
    assert seen
    assert chosen.endswith(seen)
    is_sound(browser, pflash)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, (1000, 800), PHONE], ids=["wide", "1000", "phone"])
def test_it_fits_its_window_in_both_themes(
    browser: Browser, pflash: Path, theme: str, size: tuple[int, int]
) -> None:
    browser.size(*size, dark=theme == "dark", phone=size == PHONE)
    browser.open(pflash)
    assert browser.ask("document.documentElement.scrollWidth") <= size[0]
    ground = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (theme == "light")
    corner = browser.ask(
        "[...document.getElementById('timeline').getContext('2d').getImageData(1, 1, 1, 1).data]"
        ".slice(0, 3).join(', ')"
    )
    assert ground == f"rgb({corner})"
    browser.picture(SHOTS / f"whole-{size[0]}-{theme}.png")
    browser.key("n")
    browser.picture(SHOTS / f"finding-{size[0]}-{theme}.png")
    is_sound(browser, pflash)
    browser.size(*WIDE)


def test_the_button_changes_the_theme(browser: Browser, pflash: Path) -> None:
    browser.size(*WIDE, dark=False)
    browser.open(pflash)
    browser.ask("document.getElementById('theme').click()")
    assert browser.ask("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    is_sound(browser, pflash)


def test_it_can_be_printed(browser: Browser, pflash: Path) -> None:
    browser.open(pflash)
    assert browser.print_pdf().startswith(b"%PDF-")
    is_sound(browser, pflash)


def test_what_the_target_named_is_text(browser: Browser, tmp_path: Path) -> None:
    names = {"name": HOSTILE, "thread": HOSTILE, "context": HOSTILE}
    trace = tmp_path / "hostile.csv"
    target = {"pid": 1, "program": HOSTILE, "version": HOSTILE, "build_id": HOSTILE}
    recording(
        trace, schedule(1_000, **names), run_on_vcpu(2_000, **names), target=target,
        watched=[{"name": HOSTILE}],
    )  # fmt: skip
    page = report(tmp_path, trace)
    browser.open(page)
    browser.key("n")
    assert "<img src=x" in details(browser)
    assert browser.ask("document.querySelectorAll('img, iframe, script:not([type])').length") == 2
    assert "\u202e" not in browser.ask("document.body.innerText")
    assert browser.ask("document.documentElement.scrollWidth") <= WIDE[0]
    is_sound(browser, page)


def test_a_lossy_and_an_empty_recording_say_so(browser: Browser, tmp_path: Path) -> None:
    lossy = recording(tmp_path / "lossy.csv", schedule(1_000), run(2_000), lost(4_000, 900_000, 7))
    page = report(tmp_path, lossy.path)
    browser.open(page)
    assert "7 events were lost" in browser.ask("document.getElementById('left-out').innerText")
    browser.picture(SHOTS / "lossy.png")
    is_sound(browser, page)
    page = report(tmp_path, write(tmp_path / "empty.csv", [attach()]))
    browser.open(page)
    assert "cut off" in browser.ask("document.getElementById('left-out').innerText")
    is_sound(browser, page)


def test_several_recordings_are_chosen_from(browser: Browser, tmp_path: Path) -> None:
    names = ("main-loop-10.0-kvm.parquet", "vcpu-poll-10.0-kvm.parquet")
    page = report(tmp_path, *(SAMPLES / name for name in names))
    browser.open(page)
    assert names[1] in browser.ask("document.getElementById('target').textContent")
    browser.ask(
        "(() => { const choose = document.getElementById('recording'); choose.value = '1';"
        " choose.dispatchEvent(new Event('change')); })()"
    )
    browser.until(f"document.getElementById('target').textContent.includes('{names[0]}')")
    # Lints that need every bottom half cannot tell: that nothing was found clears nothing.
    assert "clears nothing" in browser.ask("document.getElementById('findings').innerText")
    is_sound(browser, page)


def test_a_long_recording_opens_quickly_and_says_what_it_left_out(
    browser: Browser, tmp_path: Path
) -> None:
    """More runs than a page holds: as many are shown, and all of them are counted."""
    events = []
    for number in range(130_000):
        at = 1_000 + 5_000 * number
        events += [schedule(at, opaque=number), run(at + 1_000 + number % 800, opaque=number)]
    trace = write(tmp_path / "long.csv", [attach(), *events, detach(10**10)])
    page = report(tmp_path, trace)
    assert page.stat().st_size <= 5_000_000
    browser.open(page)
    took = browser.ask("performance.now()")
    assert "Of 130,000 runs 1" in browser.ask("document.getElementById('left-out').innerText")
    # A second or two on a quiet machine; others may want the processors.
    assert took < 45_000
    is_sound(browser, page)
