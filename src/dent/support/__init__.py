"""Helpers for all modules, such as extras, factories, devices, signals and addresses."""
