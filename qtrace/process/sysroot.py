"""Where the files lie that a core names by the paths at which its process had them."""

from __future__ import annotations

import os
from pathlib import Path

# As many symbolic links as the kernel follows.
MAX_LINKS = 40


class Sysroot:
    """The folders below which the files may lie: of a container, a chroot, another machine.

    Args:
        folder: the one that was named; the root directory without one.
        exe: where the executable is, if that was named.
        ran: the path at which it ran.
    """

    def __init__(self, folder: Path | None, exe: Path | None, ran: str) -> None:
        self._roots = [folder] if folder else []
        if exe is not None and folder is None:
            found = str(exe.absolute())
            # One below a chroot says where that is.
            if found.endswith(ran) and len(found) > len(ran):
                self._roots.append(Path(found[: -len(ran)]))
        self._roots.append(Path("/"))

    def places(self, path: str) -> list[Path]:
        """Where a file may be, the likeliest first; it may be another build, or not there.

        gdb writes paths into a core as it sees them: those of a chroot begin with its folder.
        """
        path = path.removesuffix(" (deleted)")
        found = [inside(root, path) for root in self._roots]
        return list(dict.fromkeys(place for place in found if os.path.isfile(place)))


def inside(root: Path, path: str) -> Path:
    """A path below a root, with the symbolic links there followed as for who has that root."""
    if root == Path("/"):
        return Path(path)
    parts = [part for part in path.split("/") if part]
    at: list[str] = []
    links = 0
    while parts:
        part = parts.pop(0)
        if part == "..":
            at = at[:-1]
            continue
        place = root.joinpath(*at, part)
        if part == "." or not os.path.islink(place) or links == MAX_LINKS:
            at += [part] if part != "." else []
            continue
        links += 1
        target = os.readlink(place)
        at = [] if target.startswith("/") else at
        parts = [piece for piece in target.split("/") if piece] + parts
    return root.joinpath(*at)
