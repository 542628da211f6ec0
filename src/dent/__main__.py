"""Run `dent` as `python -m dent`."""

from dent.cli import main

if __name__ == "__main__":
    main()
