"""Which backend would serve which model on each device that is here, and why not the others."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sglang_moe_ext import env
from sglang_moe_ext.doctor.check import Check
from sglang_moe_ext.limits import PORTABLE
from sglang_moe_ext.ops import RouterSpec, choose, xpu_kernels
from sglang_moe_ext.ops.choose import BackendError

# E, K, G, kept groups of models whose routing is ours.
MODEL_SHAPES = {
    "DeepSeek-V3, Ling": (256, 8, 8, 4),
    "Kimi-K2": (384, 8, 1, 1),
    "GLM-5, MiniMax-M2": (256, 8, 1, 1),
    "GLM-4.5": (160, 8, 1, 1),
    "GLM-4.5-Air": (128, 8, 1, 1),
    "Nemotron-3-Nano": (128, 6, 1, 1),
    "Nemotron-3-Super": (512, 22, 1, 1),
    "Kimi-K3": (896, 16, 1, 1),
}
REMEDIES = {
    "cpu": "pip install 'sglang-moe-ext[cpu]' for the compiled router",
    "cuda": "install the Triton that your PyTorch asks for",
    "xpu": "an sgl_kernel for XPU that serves it, or a Triton with an XPU driver, would be faster",
}
NO_SGL_KERNEL = "sgl_kernel cannot be used, as said above"


def routers() -> Iterator[Check]:
    try:
        ours = env.settings().devices
    except env.EnvError:
        return  # reported by the check of the variables
    for device, name in _devices():
        if device not in ours:
            found = f"{name}; left to SGLang by {env.PREFIX}_DEVICES={','.join(sorted(ours))}"
            yield Check(device, "ok", found)
            continue
        yield Check(device, "ok", name)
        if device == "xpu":
            yield from _xpu_kernels()
        yield from _backends(device)


def _devices() -> Iterator[tuple[str, str]]:
    """(a name of env.DEVICES, what it is) of every kind of device that is here."""
    yield "cpu", f"{torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        yield "rocm" if torch.version.hip else "cuda", torch.cuda.get_device_name()
    if torch.xpu.is_available():
        yield "xpu", torch.xpu.get_device_name()


def _xpu_kernels() -> Iterator[Check]:
    if why := _no_sgl_kernel():
        remedy = f"install the sgl_kernel for XPU that was built for PyTorch {torch.__version__}"
        yield Check("sgl_kernel", "warn", why, remedy)
        return
    for operation in xpu_kernels.VARIANTS:
        kernel = xpu_kernels.find(operation)
        found = kernel if isinstance(kernel, str) else f"variant {kernel.variant}"
        yield Check(f"sgl_kernel.{operation}", "warn" if found is kernel else "ok", found)


def _no_sgl_kernel() -> str | None:
    """Why none of its operations can be used, if that has one reason."""
    reason, *others = {xpu_kernels.find(operation) for operation in xpu_kernels.VARIANTS}
    return reason if isinstance(reason, str) and not others else None


def _backends(device: str) -> Iterator[Check]:
    """One line for the models with the same answer."""
    models: dict[Check, list[str]] = {}
    for model, shape in MODEL_SHAPES.items():
        spec = RouterSpec(*shape, device_type=torch.device(device.replace("rocm", "cuda")).type)
        models.setdefault(_backend(device, spec), []).append(f"{model} {spec}")
    for check, served in models.items():
        yield Check(check.name, check.status, f"{'; '.join(served)}: {check.found}", check.remedy)


def _backend(device: str, spec: RouterSpec) -> Check:
    """Choose as a server would, self-check included."""
    candidates, forced = choose.candidates(spec.device_type), env.settings().backend
    if forced == "upstream":
        return Check(f"{device}: upstream", "ok", f"{env.PREFIX}_BACKEND=upstream")
    try:
        here = torch.device(spec.device_type)
        plan = choose.choose(spec, here) if forced == "auto" else choose.force(forced, spec, here)
    except (BackendError, SystemExit) as error:
        return _no_backend(device, str(error))
    if forced == "auto" and plan.is_last:
        return _no_backend(device, plan.decision.detail)
    decision, backend = plan.decision, plan.decision.backend
    passed_over = [
        f"not {name}: {NO_SGL_KERNEL if name == 'xpu' and _no_sgl_kernel() else why}"
        for name, why in decision.rejected
    ]
    reserve = () if forced != "auto" else candidates[candidates.index(backend) + 1 :]
    in_reserve = [f"in reserve {', '.join(reserve)}"] if reserve else []
    found = "; ".join((decision.detail, *passed_over, *in_reserve))
    is_slow = backend in PORTABLE and candidates[0] not in PORTABLE
    status, remedy = ("warn", REMEDIES[spec.device_type]) if is_slow else ("ok", "")
    return Check(f"{device}: {backend}", status, found, remedy)


def _no_backend(device: str, why: str) -> Check:
    remedy = f"{env.PREFIX}_DEVICES without {device} leaves it to SGLang"
    return Check(f"{device}: no backend", "fail", why, remedy)
