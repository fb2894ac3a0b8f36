"""`python -m model_constructor`: the same as the command `model-constructor`."""

import sys

from .tools.cli import main

sys.exit(main())
