"""``python -m pycc``: the same as ``pycc``."""

from pycc.commands import main

if __name__ == "__main__":
    raise SystemExit(main())
