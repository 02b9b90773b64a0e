"""`python -m jaxlm`: the command line, for where the script `jaxlm` is not on the path."""

import sys

from jaxlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
