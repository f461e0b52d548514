"""``python -m simmim``, the same as ``simmim``."""

import sys

from simmim.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
