"""`python -m isouq` is the command `isouq`."""

import sys

from isouq.cli import main

sys.exit(main())
