"""``python -m qtrace``."""

from qtrace.cli import main

if __name__ == "__main__":
    main()
