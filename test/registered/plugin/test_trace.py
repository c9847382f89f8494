"""The trace: what is read back, from whole files and from those of killed processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from sglang_moe_ext import trace
from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=3, suite="base-a-test-cpu")

ROUTE = """
import sys, torch
from pathlib import Path
from sglang_moe_ext import trace
from sglang_moe_ext.ops import biased_grouped_topk
for _ in range(2):  # the second changes nothing
    trace.start(Path(sys.argv[1]))
for rows in (1, 4):
    biased_grouped_topk(torch.zeros(rows, 16), torch.zeros(16), 4, True, backend="torch")
"""


def test_decisions_and_totals(tmp_path: Path) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SGLANG_")}
    subprocess.run([sys.executable, "-c", ROUTE, tmp_path], env=clean, check=True, timeout=120)
    (record,) = trace.read(tmp_path)
    assert (record["backend"], record["calls"], record["tokens"]) == ("torch", 2, 5)

    (file,) = tmp_path.glob("*.jsonl")
    whole = file.read_text()
    assert whole.count('"process"') == 1
    assert whole.count('"decision"') == 1
    torn = json.dumps({"event": "totals", "counts": [[3, 6]]})[:-9]
    file.write_text(whole + torn)
    assert list(trace.read(tmp_path)) == [record]


if __name__ == "__main__":
    run_file(__file__)
