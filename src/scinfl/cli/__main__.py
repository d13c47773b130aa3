"""``python -m scinfl.cli``."""

import sys

from scinfl.cli import main

sys.exit(main())
