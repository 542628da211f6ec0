"""Check a finished run: its files, its submissions and its attacks."""
