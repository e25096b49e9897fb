"""``python -m increlora``: the command line (see `increlora.cli`)."""

import sys

from increlora.cli import main

sys.exit(main())
