"""Run the command line as ``python -m qvae``."""

import sys

from qvae.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
