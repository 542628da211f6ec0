"""Attacks from outside on a finished run: their images are checked, submitted and recorded."""
