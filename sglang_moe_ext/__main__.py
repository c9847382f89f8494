"""`python -m sglang_moe_ext`."""

import sys

from sglang_moe_ext.cli import main

sys.exit(main())
