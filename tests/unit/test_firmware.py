"""The shipped firmware is what its source builds."""

from __future__ import annotations

import shutil

import pytest

from qtrace.lab import firmware

BOTH = ("pflash", "idle")
RESET_VECTOR = 0x10  # below the end
SHORT_JMP, NEAR_JMP = 0xEB, 0xE9


@pytest.mark.parametrize("name", BOTH)
def test_an_image_fills_one_chip_and_begins_at_the_reset_vector(name: firmware.Firmware) -> None:
    image = firmware.image(name)
    assert len(image) == firmware.CHIP_BYTES
    assert image[-RESET_VECTOR] in (SHORT_JMP, NEAR_JMP)


@pytest.mark.parametrize("name", BOTH)
def test_rebuilding_gives_the_shipped_bytes(name: firmware.Firmware) -> None:
    for tool in ("gcc", "ld"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here: apt install gcc binutils")
    assert firmware.build(name) == firmware.shipped(name).read_bytes()
