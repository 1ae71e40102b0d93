"""Which instructions of a QEMU binary to probe, and whether a process runs the code of its file."""
