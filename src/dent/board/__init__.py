"""The board: dynamic defenses, evaluated on tracks that are the same for everybody.

`tracks` says what is evaluated and how, and `track_rules` whether a run follows it. `verification`
submits and checks rows, and `export` writes them in formats of other places. See docs/board.md.
"""
