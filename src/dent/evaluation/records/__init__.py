"""What is written: the specification, the plan, the records, and the folder they lie in."""
