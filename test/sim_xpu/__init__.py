"""A simulated Intel XPU: device type, `torch.xpu`, and a stand-in `sgl_kernel`.

`SIM_XPU=1` with `site/` first on PYTHONPATH turns it on for a process and its children;
`sim_environment` makes such an environment. It shows dispatch, arguments, shapes, dtypes,
errors and lifecycles. It shows nothing about speed or about the real kernels.

| variable | default | meaning |
|---|---|---|
| `SIM_XPU` | 0 | 1: the process and its children see one simulated XPU |
| `SIM_XPU_VARIANT` | S2,F3,B1 | kernel versions that the stand-in has (`sgl_kernel.variants`) |
| `SIM_XPU_MODE` | strict | where the kernels are undefined: `strict` raises, `faithful` obeys |
| `SIM_XPU_SLACK` | 0 | 1: perturb the sigmoid by an ulp or two, as the device's `exp` may |

Importing this package imports no torch.
"""

from __future__ import annotations

import os
from pathlib import Path

SITE = Path(__file__).with_name("site")


def is_simulated() -> bool:
    return os.environ.get("SIM_XPU") == "1"


def sim_environment(
    *, variant: str = "S2,F3,B1", mode: str = "strict", slack: bool = False
) -> dict[str, str]:
    """A copy of this process's environment in which a child sees the simulated XPU."""
    paths = [str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "SIM_XPU": "1",
        "SIM_XPU_VARIANT": variant,
        "SIM_XPU_MODE": mode,
        "SIM_XPU_SLACK": str(int(slack)),
        "PYTHONPATH": os.pathsep.join(paths),
    }
