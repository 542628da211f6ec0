"""Submitting a batch to a defense as a user would, and to fresh copies of it."""
