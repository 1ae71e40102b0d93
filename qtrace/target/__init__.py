"""The QEMU process and its binary, read-only: nothing in here stops or changes the target."""
