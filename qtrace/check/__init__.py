"""The first answer about a QEMU: healthy, or what is wrong, from looks and a short recording."""
