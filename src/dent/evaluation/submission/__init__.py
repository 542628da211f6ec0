"""Submit batches as a user would, to fresh copies of a defense."""
