"""`python -m jseg COMMAND ...` is the same as `jseg COMMAND ...`."""

import sys

from jseg.cli import main

if __name__ == "__main__":
    sys.exit(main())
