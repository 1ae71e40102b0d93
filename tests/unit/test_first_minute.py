"""What a newcomer meets first: no command, a wrong one, a wrong ending, two things at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from qtrace.cli import COMMANDS, cli
from qtrace.cli.commands.convert import named
from qtrace.trace.reader import read_trace

SAMPLE = Path(__file__).parents[2] / "analysis/samples/vcpu-poll-7.2-tcg.csv"


def qtrace(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qtrace", *map(str, arguments)],
        capture_output=True, text=True, timeout=60, env=os.environ | environment,
    )  # fmt: skip


def test_without_a_command_it_says_what_to_do_first() -> None:
    run = qtrace()
    assert (run.returncode, run.stdout) == (2, "")
    assert "qtrace check --host" in run.stderr
    assert max(map(len, run.stderr.splitlines())) <= 80


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_terminal(command: str) -> None:
    shown = CliRunner().invoke(cli, [command, "--help"] if command else ["--help"])
    assert shown.exit_code == 0
    assert [line for line in shown.output.splitlines() if len(line) > 80] == []


def test_a_mistyped_command_is_guessed() -> None:
    run = qtrace("atach", "--pid", 1)
    assert run.returncode == 2
    assert "Did you mean 'attach'?" in run.stderr
    assert "Did you mean" not in qtrace("zzz").stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands(shell: str) -> None:
    script = qtrace("completion", shell)
    assert script.returncode == 0
    assert "_QTRACE_COMPLETE" in script.stdout
    if shutil.which(shell):
        read = subprocess.run([shell, "-n"], input=script.stdout, text=True, capture_output=True)
        assert (read.returncode, read.stderr) == (0, "")


def test_what_it_completes_are_commands_and_options() -> None:
    words = {"_QTRACE_COMPLETE": "bash_complete", "COMP_CWORD": "1"}
    assert "plain,attach" in qtrace(COMP_WORDS="qtrace att", **words).stdout.split()
    words["COMP_CWORD"] = "2"
    assert "plain,--backend" in qtrace(COMP_WORDS="qtrace attach --b", **words).stdout.split()


@pytest.mark.parametrize(
    ("source", "kind", "target"),
    [
        ("t.csv", "parquet", "t.parquet"),
        ("t.parquet", "csv", "t.csv"),
        ("t.csv.raw", "csv", "t.csv"),
        ("t.csv.raw", "parquet", "t.parquet"),
        ("t.parquet.partial.csv", "parquet", "t.parquet"),
        ("a.b/t.1.csv", "parquet", "a.b/t.1.parquet"),
    ],
)
def test_a_trace_of_another_kind_is_named_as_the_recording_would_have(
    source: str, kind: str, target: str
) -> None:
    assert named(Path(source), kind) == Path(target)


def test_convert_takes_a_kind_in_place_of_a_name(tmp_path: Path) -> None:
    source = tmp_path / "t.csv"
    shutil.copy(SAMPLE, source)
    assert qtrace("convert", source, "--to", "parquet").returncode == 0
    made = read_trace(tmp_path / "t.parquet").frame
    assert len(made) == len(read_trace(source).frame)
    for arguments in ([], [tmp_path / "u.csv", "--to", "csv"]):
        run = qtrace("convert", source, *arguments)
        assert run.returncode == 2
        assert "--to" in run.stderr


@pytest.mark.parametrize("command", [("attach", "--pid", os.getpid()), ("run", "--", "true")])
def test_an_ending_that_is_no_traces_is_refused_before_anything_is_done(
    command: tuple[object, ...], tmp_path: Path
) -> None:
    name, *rest = command
    run = qtrace(name, "-o", tmp_path / "t.txt", *rest)
    assert run.returncode == 3
    assert "t.txt is neither .csv nor .parquet" in run.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more", [("steer", "--run-on", "vcpu"), ("reroute", "--to", "main")])
def test_a_bottom_half_is_named_alike_everywhere(more: tuple[str, ...]) -> None:
    command, *options = more
    run = qtrace(command, "--pid", 4_000_000, "-b", "snapshot_save_job_bh", *options)
    assert run.returncode == 3
    assert "4000000" in run.stderr


def test_a_process_and_a_core_are_one_too_many() -> None:
    run = qtrace("inspect", "--pid", 1, "--core", "core.1")
    assert run.returncode == 2
    assert "give one of them" in run.stderr
