"""``python -m pycc.certify``: the same as ``pycc certify``."""

from pycc.commands import main

if __name__ == "__main__":
    raise SystemExit(main("certify"))
