"""Checking a finished run: its files, its submissions, its attacks."""
