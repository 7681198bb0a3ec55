"""``python -m excise`` is ``excise``."""

import sys

from excise.cli import main

sys.exit(main())
