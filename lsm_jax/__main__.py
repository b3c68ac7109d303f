"""`python -m lsm_jax` is the command `lsm`."""

import sys

from lsm_jax.cli.main import main

sys.exit(main())
