"""Runs at the start of every Python process that has this folder on PYTHONPATH."""

import os

if os.environ.get("PLAIN_CPU_FAULT"):
    from test_support import faults

    faults.FAULTS[os.environ["PLAIN_CPU_FAULT"]].inject()
