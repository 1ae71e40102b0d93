"""Kernel headers for bcc where the running kernel's own are not installed.

bcc compiles every program against kernel headers. Probes on user space use no kernel
structure, so that any version will do: Debian's two header packages of one version are
merged into a private folder of symbolic links, named to bcc by BCC_KERNEL_SOURCE.
/lib/modules is never written to.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from qtrace.errors import RecorderUnavailable
from qtrace.host.cache import cache_folder

VARIABLE = "BCC_KERNEL_SOURCE"
SOURCES = Path("/usr/src")
MODULES = Path("/lib/modules")
# A kernel with CONFIG_IKHEADERS carries its headers; bcc unpacks them by itself.
BUILT_IN = Path("/sys/kernel/kheaders.tar.xz")
REMEDY = "apt-get install linux-headers-amd64"
# linux-headers-6.1.0-56-common goes with linux-headers-6.1.0-56-amd64 or -cloud-amd64,
# linux-headers-6.1.0-56-common-rt with linux-headers-6.1.0-56-rt-amd64.
COMMON = re.compile(r"linux-headers-(?P<version>.+)-common(?P<flavour>-rt)?\Z")
ARCHITECTURES = {"": ("-amd64", "-cloud-amd64"), "-rt": ("-rt-amd64",)}
# What bcc's compiler looks into.
PARTS = ("include", "arch")


@dataclass(frozen=True, slots=True)
class Headers:
    """Where bcc gets its headers from.

    Attributes:
        description: for people.
        folders: to be merged for bcc; empty when bcc finds the headers by itself.
    """

    description: str
    folders: tuple[Path, ...] = ()


def find_headers(
    release: str | None = None,
    *,
    modules: Path = MODULES,
    sources: Path = SOURCES,
    built_in: Path = BUILT_IN,
) -> Headers:
    """The headers to use; changes nothing.

    Raises RecorderUnavailable when there are none.
    """
    release = release or platform.release()
    if named := os.environ.get(VARIABLE):
        return Headers(f"{named} (named by {VARIABLE})")
    if (modules / release / "build" / "include").is_dir():
        return Headers(f"the running kernel's own ({release})")
    pair = _newest_pair(sources)
    if pair is not None:
        return Headers(f"{pair[1].name} in place of the running kernel's", pair)
    if built_in.exists():
        return Headers("built into the running kernel")
    raise RecorderUnavailable(f"no kernel headers are installed (kernel {release})", REMEDY)


def prepare_headers() -> Headers:
    """Make bcc find kernel headers: to be called before it compiles.

    Sets BCC_KERNEL_SOURCE in this process's environment where needed.

    Raises RecorderUnavailable: no headers, or no place to put the links.
    """
    headers = find_headers()
    if headers.folders:
        try:
            os.environ[VARIABLE] = str(merged(headers.folders, cache_folder()))
        except OSError as error:
            raise RecorderUnavailable(
                f"cannot merge the kernel headers: {error}",
                "name a writable folder by XDG_CACHE_HOME",
            ) from error
    return headers


def merged(folders: tuple[Path, ...], cache: Path) -> Path:
    """The folder in ``cache`` that shows ``folders`` as one; made when it is not there yet."""
    identity = "\n".join(f"{f} {p} {(f / p).stat().st_mtime_ns}" for f in folders for p in PARTS)
    folder = cache / f"headers-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    if cache.stat().st_uid != os.geteuid():
        raise PermissionError(f"{cache} belongs to another user")
    if folder.is_dir():
        return folder
    # Made aside, then renamed: whoever finds it finds it whole, whoever is second drops his.
    temporary = Path(tempfile.mkdtemp(prefix=".headers-", dir=cache))
    try:
        for part in PARTS:
            _merge([f / part for f in folders], temporary / part)
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _newest_pair(sources: Path) -> tuple[Path, Path] | None:
    """The common and the architecture's folder of the newest version that has both."""
    pairs = []
    for common in sources.glob("linux-headers-*-common*"):
        if match := COMMON.match(common.name):
            for architecture in ARCHITECTURES[match["flavour"] or ""]:
                own = sources / f"linux-headers-{match['version']}{architecture}"
                if (own / "include/generated/autoconf.h").is_file():
                    pairs.append((_version_key(match["version"]), own.name, common, own))
    return max(pairs)[2:] if pairs else None


def _version_key(version: str) -> tuple[tuple[int, str], ...]:
    """6.1.0-9 before 6.1.0-10: numbers compare as numbers."""
    return tuple((int(n or -1), text) for n, text in re.findall(r"(\d+)|(\D+)", version))


def _merge(sources: list[Path], destination: Path) -> None:
    """Links to what only one of the sources has; a folder of links where several have it."""
    sources = [source for source in sources if source.exists()]
    if not sources:
        return
    if len(sources) == 1 or not sources[0].is_dir():
        destination.symlink_to(sources[0])
        return
    destination.mkdir()
    for name in sorted({entry.name for source in sources for entry in source.iterdir()}):
        _merge([source / name for source in sources], destination / name)
