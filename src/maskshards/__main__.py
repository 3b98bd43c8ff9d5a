"""`python -m maskshards` is the command `maskshards`."""

import sys

from maskshards.cli import main

if __name__ == "__main__":
    sys.exit(main())
