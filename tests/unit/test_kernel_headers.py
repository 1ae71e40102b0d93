"""Kernel headers for bcc: chosen, merged, and never written where they are not ours."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from qtrace.errors import RecorderUnavailable
from qtrace.record.ebpf.kernel_headers import VARIABLE, Headers, cache_folder, find_headers, merged


@pytest.fixture(autouse=True)
def not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def install(sources: Path, version: str, flavour: str = "", common: str = "") -> None:
    """Debian's two packages of one version, as they lie in /usr/src."""
    own = sources / f"linux-headers-{version}{flavour}-amd64"
    shared = sources / f"linux-headers-{version}-common{common}"
    write(own / "include/generated/autoconf.h", "own")
    write(own / "include/config/auto.conf")
    write(own / "arch/x86/include/generated/asm/x.h")
    write(shared / "include/linux/types.h", "shared")
    write(shared / "arch/x86/include/asm/ptrace.h")


def find(tmp_path: Path) -> Headers:
    return find_headers(
        "9.9-test",
        modules=tmp_path / "modules",
        sources=tmp_path / "src",
        built_in=tmp_path / "kheaders",
    )


def names(headers: Headers) -> list[str]:
    return [folder.name for folder in headers.folders]


def test_the_running_kernels_own_headers_are_left_to_bcc(tmp_path: Path) -> None:
    install(tmp_path / "src", "6.1.0-9")
    (tmp_path / "modules/9.9-test/build/include").mkdir(parents=True)
    assert find(tmp_path).folders == ()


def test_a_dangling_build_link_does_not_count_as_headers(tmp_path: Path) -> None:
    install(tmp_path / "src", "6.1.0-9")
    (tmp_path / "modules/9.9-test").mkdir(parents=True)
    (tmp_path / "modules/9.9-test/build").symlink_to(tmp_path / "nowhere")
    assert names(find(tmp_path)) == ["linux-headers-6.1.0-9-common", "linux-headers-6.1.0-9-amd64"]


def test_the_newest_version_is_chosen_by_number(tmp_path: Path) -> None:
    for version in ("6.1.0-9", "6.1.0-10", "5.10.0-30"):
        install(tmp_path / "src", version)
    assert names(find(tmp_path))[1] == "linux-headers-6.1.0-10-amd64"


def test_a_version_with_only_one_of_the_two_packages_is_passed_over(tmp_path: Path) -> None:
    install(tmp_path / "src", "6.1.0-9")
    (tmp_path / "src/linux-headers-6.12.1-common/include").mkdir(parents=True)
    (tmp_path / "src/linux-headers-6.13.1-amd64/include").mkdir(parents=True)
    assert names(find(tmp_path))[1] == "linux-headers-6.1.0-9-amd64"


def test_real_time_and_cloud_headers_go_with_their_own_common_package(tmp_path: Path) -> None:
    install(tmp_path / "src", "6.1.0-9", "-cloud")
    install(tmp_path / "src", "6.1.0-11", "-rt", "-rt")
    assert names(find(tmp_path)) == [
        "linux-headers-6.1.0-11-common-rt",
        "linux-headers-6.1.0-11-rt-amd64",
    ]


def test_headers_built_into_the_kernel_serve_when_no_package_does(tmp_path: Path) -> None:
    write(tmp_path / "kheaders")
    assert find(tmp_path) == Headers("built into the running kernel")


def test_no_headers_at_all_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(RecorderUnavailable) as error:
        find(tmp_path)
    assert "apt-get install linux-headers" in error.value.remedy


def test_a_folder_the_user_named_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "/my/kernel")
    assert "/my/kernel" in find(tmp_path).description


def test_the_merged_folder_shows_the_files_of_both(tmp_path: Path) -> None:
    install(tmp_path / "src", "6.1.0-9")
    folder = merged(find(tmp_path).folders, tmp_path / "cache")
    assert (folder / "include/generated/autoconf.h").read_text() == "own"
    assert (folder / "include/linux/types.h").read_text() == "shared"
    assert (folder / "arch/x86/include/asm/ptrace.h").is_file()
    assert (folder / "arch/x86/include/generated/asm/x.h").is_file()


def test_merging_twice_gives_the_same_folder_and_leaves_nothing_else(tmp_path: Path) -> None:
    install(tmp_path / "src", "6.1.0-9")
    folders = find(tmp_path).folders
    made = {merged(folders, tmp_path / "cache") for _ in range(2)}
    assert list((tmp_path / "cache").iterdir()) == list(made)


def test_many_at_once_agree_on_one_whole_folder(tmp_path: Path) -> None:
    install(tmp_path / "src", "6.1.0-9")
    folders = find(tmp_path).folders
    barrier = threading.Barrier(8)
    made: list[Path] = []

    def merge() -> None:
        barrier.wait()
        made.append(merged(folders, tmp_path / "cache"))

    threads = [threading.Thread(target=merge) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert list((tmp_path / "cache").iterdir()) == list(set(made))


def test_changed_headers_get_a_folder_of_their_own(tmp_path: Path) -> None:
    install(tmp_path / "src", "6.1.0-9")
    folders = find(tmp_path).folders
    before = merged(folders, tmp_path / "cache")
    os.utime(folders[0] / "include", ns=(0, 0))
    assert merged(folders, tmp_path / "cache") != before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away: run as root")
def test_root_does_not_use_another_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    monkeypatch.setenv("XDG_CACHE_HOME", str(theirs))
    assert not cache_folder().is_relative_to(theirs)
    install(tmp_path / "src", "6.1.0-9")
    with pytest.raises(PermissionError):
        merged(find(tmp_path).folders, theirs)
