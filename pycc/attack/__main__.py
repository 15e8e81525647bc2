"""``python -m pycc.attack``: the same as ``pycc attack``."""

from pycc.commands import main

if __name__ == "__main__":
    raise SystemExit(main("attack"))
