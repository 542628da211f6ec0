"""Run a plan unit by unit: cost, progress, sessions."""
