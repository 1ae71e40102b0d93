"""The hunt: many short lives of guests of our own, in search of what QEMU does wrong."""
