"""``python -m pycc.backdoor``: the same as ``pycc backdoor``."""

from pycc.commands import main

if __name__ == "__main__":
    raise SystemExit(main("backdoor"))
