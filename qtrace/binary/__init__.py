"""What an ELF file tells without being run: symbols, unwind rules, what its code does."""
