"""From records to numbers: scores, worst case, intervals, diagnostics, the verdict."""
