"""The board: what a dynamic defense keeps on tracks that are the same for everybody.

`tracks` says what is evaluated and how, `running` does it. See docs/board.md.
"""
