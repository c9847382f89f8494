"""Stream answers from a served checkpoint to many clients and check every token.

python scripts/soak.py --seconds 1200 --out benchmarks/soak.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from test_support.load import check, soak

from sglang_moe_ext import host

ROOT = Path(__file__).parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="of load (default 60)")
    parser.add_argument("--clients", type=int, default=16, help="at once (default 16)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        model = Path(folder, "checkpoint")
        subprocess.run([sys.executable, ROOT / "scripts" / "make_checkpoint.py", model], check=True)
        summary = soak(
            model,
            Path(folder),
            seconds=args.seconds,
            clients=args.clients,
            say=lambda line: print(line, flush=True),
        )
    problems = check(summary)
    print(json.dumps(summary.as_dict(), indent=2), *problems, sep="\n")
    if args.out:
        result = {"sglang": host.release(), **summary.as_dict()}
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
