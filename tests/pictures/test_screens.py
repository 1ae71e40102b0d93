"""The screens of `replay`, `inspect --watch` and `attach --all --live`, on a real terminal."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from qtrace.lab.guest import Guest, find_qemu
from tests.live.support.hung import hung_guest
from tests.pictures.tmux import Tmux

pytestmark = pytest.mark.tmux

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "analysis/samples/all-pflash-7.2-kvm.parquet"
SECTIONS = ("thread", "pending", "context", "busiest", "bottom half", "in flight", "commands")


def qtrace(*words: object) -> list[str]:
    return ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "qtrace", *map(str, words)]


def is_sound(lines: list[str], width: int = 80, height: int = 24) -> None:
    """No line is longer than the terminal, and no figure of a table is cut."""
    assert len(lines) <= height
    titles: list[str] = []
    for line in lines[:-1]:
        assert len(line) <= width
        if line.startswith(SECTIONS):
            titles = line.split("  ")
            continue
        if titles and line:
            assert not line.endswith("…"), line


def place(lines: list[str]) -> float:
    """Where the recording is; -1 where that does not stand there, as while it is drawn anew."""
    found = re.findall(r"^([\d.]+) s of ", "\n".join(lines), re.MULTILINE)
    return float(found[0]) if len(found) == 1 else -1.0


def test_a_recording_is_played_and_keys_move_in_it(tmp_path: Path) -> None:
    with Tmux(tmp_path / "tmux", qtrace("replay", SAMPLE, "--finding", 1)) as terminal:
        at_finding = terminal.shows("stopped at 1 times its speed, finding 1 of ")
        is_sound(at_finding)
        assert terminal.is_whole_screen
        assert any(line.startswith("vcpu-poll: ") for line in at_finding)
        assert any(line.startswith("snapshot_save_job_bh") for line in at_finding)
        terminal.press("n")
        terminal.shows("finding 2 of ")
        terminal.press("p")
        terminal.until(lambda lines: place(lines) == place(at_finding), "the first finding")
        terminal.press("-", "-")
        terminal.shows("at 0.25 times")
        terminal.press("Right")
        terminal.until(
            lambda lines: place(lines) == pytest.approx(place(at_finding) + 0.25, abs=1e-5),
            "a quarter of a second later",
        )
        terminal.press("Space")
        terminal.until(lambda lines: place(lines) > place(at_finding) + 0.26, "that it plays")
        terminal.press("End")
        terminal.until(
            lambda lines: re.search(r"^([\d.]+) s of \1 s, stopped", "\n".join(lines), re.M),
            "its end",
        )
        terminal.resize(60, 16)
        smaller = terminal.until(
            # Its last line is drawn last.
            lambda lines: (
                len(lines) == 16 and lines[-1].startswith("space stops") and "…" in lines[-1]
            ),
            "the new size",
        )
        is_sound(smaller, 60, 16)
        terminal.press("q")
        terminal.until(lambda _lines: terminal.status is not None, "its end")
        assert terminal.status == 0
        assert not terminal.is_whole_screen


@pytest.mark.qemu
def test_a_hung_qemu_is_watched_and_the_finding_stays_when_it_is_over(
    tmp_path: Path,
) -> None:
    with (
        hung_guest(find_qemu(), "tcg") as guest,
        Tmux(
            tmp_path / "tmux", qtrace("inspect", "--pid", guest.pid, "--watch", "100ms")
        ) as terminal,
    ):
        shown = terminal.shows("stuck: the main loop does not run: ")
        assert terminal.is_whole_screen
        is_sound(shown)
        text = "\n".join(shown)
        assert re.search(
            rf"^{guest.pid} qemu-system-x86.* main +ppoll in .* (\d|\.)+ (ms|s)$", text, re.M
        )
        assert re.search(r"^co_schedule_bh_cb +iohandler +(\d|\.)+ (ms|s)$", text, re.M), text
        assert "BQL: held by" in text
        terminal.press("C-c")
        terminal.until(lambda _lines: terminal.status is not None, "its end")
        assert terminal.status == 1
        # Its first lines have gone up, out of sight.
        assert terminal.shows("behind it wait co_schedule_bh_cb in `iohandler`")


@pytest.mark.bpf
@pytest.mark.qemu
def test_a_recording_of_everything_shows_figures_and_looks(tmp_path: Path) -> None:
    with Guest(find_qemu()) as guest:
        trace = tmp_path / "trace.parquet"
        words = qtrace("attach", "--pid", guest.pid, "--all", "--live", "-o", trace)
        with Tmux(tmp_path / "tmux", words) as terminal:
            shown = terminal.until(
                lambda lines: any(re.match(r"main  .* [\d,]{3,}$", line) for line in lines),
                "a rate of the main context",
            )
            assert terminal.is_whole_screen
            is_sound(shown)
            text = "\n".join(shown)
            assert re.search(r"^\d+ s: [\d,]+ events/s, [\d,]+ in all, [\d,]+ lost", text, re.M)
            assert re.search(rf"^{guest.pid} qemu-system-x86.* main ", text, re.M), text
            assert re.search(r"^CPU|^\d+ CPU 0/", text, re.M), text
            terminal.press("C-c")
            terminal.until(lambda _lines: terminal.status is not None, "its end")
        assert trace.exists()
