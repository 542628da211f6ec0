"""Probe a defense: test queries about one batch, the gradient certificate, and extra attacks."""
