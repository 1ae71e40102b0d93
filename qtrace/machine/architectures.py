"""The processors whose QEMUs can be read, and the one that this machine has."""

from __future__ import annotations

import os

from qtrace.machine.arch_aarch64 import AARCH64
from qtrace.machine.arch_x86_64 import X86_64
from qtrace.machine.architecture import Architecture

ARCHITECTURES: dict[str, Architecture] = {one.elf_machine: one for one in (X86_64, AARCH64)}
# By what uname(2) says. What records, stops or steps a process knows x86-64 alone.
HOST: Architecture = {"aarch64": AARCH64}.get(os.uname().machine, X86_64)
# The only one whose live processes were ever tried: nothing is done to those of others.
TRIED = X86_64
