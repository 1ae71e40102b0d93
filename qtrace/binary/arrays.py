"""Parts of an ELF file as numpy's arrays, for whoever searches all of its code.

On their own, as numpy takes a look a third of its imports: what names and unwinds does without.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qtrace.binary.elf import Elf

# An entry of .dynsym and .symtab.
SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("shndx", "<u2"), ("value", "<u8"),
     ("size", "<u8")]
)  # fmt: skip


def code_arrays(elf: Elf) -> list[tuple[int, npt.NDArray[np.uint8]]]:
    """Link-time start and bytes of each executable segment, which are not copied."""
    return [(start, np.frombuffer(code, np.uint8)) for start, code in elf.code_bytes()]
