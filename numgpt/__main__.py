"""python -m numgpt"""

from numgpt.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
