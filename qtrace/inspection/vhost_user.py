"""The vhost-user backends of a QEMU: they do what the guest asks of a disk or a network by
themselves, so that in QEMU no request shows that they have."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

from qtrace.host.descriptors import Descriptors
from qtrace.inspection.request_look import Requests
from qtrace.process.maps import share_memory

# What a value of an option names that begins without a key.
FIRST_KEYS = {"device": "driver", "netdev": "type", "object": "qom-type", "chardev": "backend"}
DEVICES = ("vhost-user", "cryptodev-vhost-user")


def backends(pid: int, descriptors: Descriptors, requests: Requests) -> dict[int, list[str]]:
    """By process those that do not go on, in words."""
    found: dict[int, list[str]] = {}
    for one in descriptors.with_somebody:
        for peer in one.peers:
            if peer.pid in found or not share_memory(pid, peer.pid):
                continue
            text = f"vhost-user backend: {one.text}"
            if peer.held or peer.hangs:
                found[peer.pid] = [f"{text}; no request of the guest that it has shows here"]
            elif kept := requests.kept_by(peer):
                found[peer.pid] = [f"{text}, which has in hand: {sentence}" for sentence in kept]
    return found


def without_backend(arguments: Sequence[str], descriptors: Descriptors) -> list[str]:
    """The vhost-user devices whose backend is gone, or has not come yet, in words: nothing is
    connected to the socket of their chardev.

    Args:
        arguments: QEMU's command line; what was plugged in later is not known.
    """
    options = list(_options(arguments))
    paths = {
        str(values.get("id")): str(values["path"])
        for option, values in options
        if option == "chardev" and values.get("backend") == "socket" and values.get("path")
    }
    return [
        f"vhost-user device {kind} (chardev {chardev}): nobody is connected to its socket "
        f"{paths[chardev]}; no request of the guest that its backend had shows here"
        for option, values in options
        if (kind := str(values.get(FIRST_KEYS[option]))).startswith(DEVICES)
        if (chardev := str(values.get("chardev"))) in paths
        if descriptors.is_connected_by(paths[chardev]) is False
    ]


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each of ``FIRST_KEYS`` with its values, which are JSON, or keys and values with commas
    doubled."""
    for option, value in pairwise(arguments):
        name = option.lstrip("-")
        if name not in FIRST_KEYS or not option.startswith("-"):
            continue
        if value.startswith("{"):
            with suppress(ValueError):
                yield name, json.loads(value)
            continue
        parts = value.replace(",,", "\0").split(",")
        pairs = [part.replace("\0", ",").partition("=") for part in parts]
        values = {key: text for key, equals, text in pairs if equals}
        if not pairs[0][1]:
            values.setdefault(FIRST_KEYS[name], pairs[0][0])
        yield name, values
