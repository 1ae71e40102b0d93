"""Looks taken at a QEMU, of all that it shows: the block layer, and whom it waits for."""
