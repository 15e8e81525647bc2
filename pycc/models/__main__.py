"""``python -m pycc.models``: the same as ``pycc models``."""

from pycc.commands import main

if __name__ == "__main__":
    raise SystemExit(main("models"))
