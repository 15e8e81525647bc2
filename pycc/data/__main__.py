"""``python -m pycc.data``: the same as ``pycc data``."""

from pycc.commands import main

if __name__ == "__main__":
    raise SystemExit(main("data"))
