"""``python -m pycc.report``: the same as ``pycc report``."""

from pycc.commands import main

if __name__ == "__main__":
    raise SystemExit(main("report"))
