"""FAULTS_JSON=<file>: what came of each injected fault, for scripts/faults_table.py."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path


def remember(fault: str, outcome: str, said: Sequence[str] = (), *, where: str = "server") -> None:
    """Keep a row, in place of an older one about the same fault.

    where: "server", or what stood in for one.
    """
    if path := os.environ.get("FAULTS_JSON"):
        file = Path(path)
        rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        lines = [re.sub(r"(?<=\s)/\S+(?=/trace/)", "…", line) for line in dict.fromkeys(said)]
        rows[fault] = {"outcome": outcome, "said": lines, "where": where}
        file.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
