"""The board: dynamic defenses, evaluated on tracks that are the same for everybody.

`tracks` says what is evaluated and how, and `running` prepares a run of it. See docs/board.md.
"""
