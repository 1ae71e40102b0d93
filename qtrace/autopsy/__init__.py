"""Capture before kill: what is known of a QEMU that hangs, in one file (docs/autopsy.md)."""
