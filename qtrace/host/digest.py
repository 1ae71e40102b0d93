"""Digests without OpenSSL, which hashlib takes along: 4 MB, and some milliseconds."""

from __future__ import annotations

try:
    from _blake2 import blake2b
except ImportError:  # a Python that is not CPython
    from hashlib import blake2b

__all__ = ["blake2b"]
