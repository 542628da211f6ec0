"""The questions that a defense is asked about one batch, and what the answers mean."""
