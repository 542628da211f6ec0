"""A module for each command, or for a few that belong together: its options and its help.

A command imports its worker when it runs, so that help need not wait for torch.
"""
