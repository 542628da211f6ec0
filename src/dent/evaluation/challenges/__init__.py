"""Challenges: images of attacks from outside are checked, submitted to a run, and recorded."""
