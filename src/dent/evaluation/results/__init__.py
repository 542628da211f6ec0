"""Derive numbers from records: scores, worst case, intervals, diagnostics and the verdict."""
