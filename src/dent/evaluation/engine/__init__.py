"""Running a plan unit by unit: cost, progress, sessions."""
