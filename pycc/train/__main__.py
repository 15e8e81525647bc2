"""``python -m pycc.train``: the same as ``pycc train``."""

from pycc.commands import main

if __name__ == "__main__":
    raise SystemExit(main("train"))
