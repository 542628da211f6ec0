"""The specification, plan and records of a run, and the folder that holds them."""
