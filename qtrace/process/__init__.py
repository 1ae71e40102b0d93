"""A live process, or the core of one: maps, threads, stacks. Nothing here stops or changes it."""
