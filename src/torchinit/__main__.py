"""`python -m torchinit`: the command line."""

from __future__ import annotations

import sys

from torchinit.cli import main

if __name__ == "__main__":
    sys.exit(main())
