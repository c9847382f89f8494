"""Faults that any process can be started with: PLAIN_CPU_FAULT=<name>.

`fault_environment` makes the variables; every process of a server inherits them, and
`fault_site/sitecustomize.py` injects the fault before anything else is imported. The package
knows nothing of it.

Not among them: a kernel that returns rubbish only after it has passed its self-check. Only
the reference could tell, and it isn't asked again, so nothing here would notice.
"""

from __future__ import annotations

import importlib.abc
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

SITE = Path(__file__).resolve().parents[1] / "fault_site"
STOCK = "stock SGLang"
NOWHERE = "/dev/null/below"  # root couldn't make it either
LATE = 1000  # the call in which a kernel breaks that was right before

Run = Callable[[Any, Any], tuple[Any, Any]]
Inject = Callable[[], object]


@dataclass(frozen=True)
class Fault:
    """What breaks, and what must come of it.

    inject: breaks it in this process; `environment`: variables that do.
    served_by: who routes from then on.
    said: what is logged once, a regular expression; None if there is nothing to say.
    refused: under strict the server refuses to start; otherwise it serves as without.
    """

    what: str
    served_by: str
    said: str | None
    inject: Inject = lambda: None
    environment: tuple[tuple[str, str], ...] = ()
    refused: bool = False


def fault_environment(name: str) -> dict[str, str]:
    """Variables that break a child process and its children."""
    paths = [str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PLAIN_CPU_FAULT": name,
        "PYTHONPATH": os.pathsep.join(paths),
        **dict(FAULTS[name].environment),
    }


class _Unimportable(importlib.abc.MetaPathFinder):
    def __init__(self, module: str, error: Exception) -> None:
        self._module, self._error = module, error

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == self._module:
            raise self._error
        return None


def _unimportable(module: str, error: Exception | None = None) -> Inject:
    error = error or ModuleNotFoundError(f"No module named {module!r}", name=module)

    def inject() -> None:
        for name in [n for n in sys.modules if n == module or n.startswith(f"{module}.")]:
            del sys.modules[name]
        sys.meta_path.insert(0, _Unimportable(module, error))

    return inject


def _changed(module: str, change: Callable[[Any], None]) -> Inject:
    """`change(module)` as soon as it has been imported."""

    def inject() -> None:
        import wrapt

        wrapt.register_post_import_hook(change, module)

    return inject


def _kernels(change: Callable[[Run], Run], *modules: str) -> Inject:
    """Every kernel that these backends prepare becomes `change(kernel)`."""

    def wrap(module: Any) -> None:
        prepare = module.prepare

        def prepare_broken(spec: Any) -> Any:
            prepared = prepare(spec)
            return prepared._replace(run=change(prepared.run))

        module.prepare = prepare_broken

    injections = [_changed(f"sglang_moe_ext.ops.{module}", wrap) for module in modules]
    return lambda: [inject() for inject in injections]


def _always_raising(run: Run) -> Run:
    def broken(logits: Any, bias: Any) -> tuple[Any, Any]:
        raise RuntimeError("no kernel image is available")

    return broken


def _raising_late(run: Run) -> Run:
    calls = itertools.count(1)

    def broken(logits: Any, bias: Any) -> tuple[Any, Any]:
        if next(calls) >= LATE:
            raise RuntimeError("device lost")
        return run(logits, bias)

    return broken


def _returning_garbage(run: Run) -> Run:
    def broken(logits: Any, bias: Any) -> tuple[Any, Any]:
        weights, ids = run(logits, bias)
        return weights.flip(1), (ids + 1) % logits.shape[1]

    return broken


def _returning_ids_out_of_range(run: Run) -> Run:
    def broken(logits: Any, bias: Any) -> tuple[Any, Any]:
        weights, ids = run(logits, bias)
        return weights, ids + logits.shape[1]

    return broken


def _rows_written(rows_of: Callable[[int], int]) -> Inject:
    """The compiled kernel is told of fewer rows than its outputs have."""

    def change(cpu_router: Any) -> None:
        call = cpu_router.Call
        cpu_router.Call = lambda start, rows, *rest: call(start, rows_of(rows), *rest)

    return _changed("sglang_moe_ext.ops.cpu_router", change)


def _no_more_hooks(host: Any) -> None:
    """Fails when the overrides are in place already."""

    def after_hooks(callback: Callable[[], None]) -> None:
        raise OSError("too many hooks")

    host.after_hooks = after_hooks


def _cannot_compile(numba: Any) -> None:
    def cfunc(*args: Any, **kwargs: Any) -> Any:
        raise numba.core.errors.TypingError("Failed in nopython mode pipeline\n\nunknown type")

    numba.cfunc = cfunc


def _disk_is_full() -> None:
    """The trace of this process goes to a device on which every write fails."""
    folder = Path(os.environ["SGLANG_MOE_EXT_TRACE"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{os.getpid()}.jsonl").symlink_to("/dev/full")


def _reread_numba_settings() -> None:
    if "numba" in sys.modules:
        sys.modules["numba"].core.config.reload_config()


def _supports_raises(cpu_router: Any) -> None:
    def supports(spec: Any) -> str | None:
        raise AttributeError("module 'torch' has no attribute 'backend_of_tomorrow'")

    cpu_router.supports = supports


CPU, EVERY = ("cpu_router",), ("cpu_router", "torch_router", "reference")

FAULTS = MappingProxyType(
    {
        "plugin-unimportable": Fault(
            "the plugin's module cannot be imported",
            STOCK,
            "Failed to load plugin moe_ext",  # by SGLang: nothing of ours runs, strict neither
            _unimportable("sglang_moe_ext.plugin"),
        ),
        "dependency-missing": Fault(
            "wrapt, its only dependency, is missing",
            STOCK,
            r"is NOT active .*register\(\) failed: .*No module named 'wrapt'",
            _unimportable("wrapt"),
            refused=True,
        ),
        "register-midway": Fault(
            "`register()` fails midway",
            STOCK,
            r"is NOT active .*register\(\) failed: OSError: too many hooks",
            _changed("sglang_moe_ext.host", _no_more_hooks),
            refused=True,
        ),
        "replacement-midway": Fault(
            "the router is replaced, then the gate cannot be",
            STOCK,
            r"is NOT active .*MoEGate.*: not replaced, .*sglang_moe_ext.gate",
            _unimportable("sglang_moe_ext.gate"),
            refused=True,
        ),
        "trace-unwritable": Fault(
            "the trace directory cannot be made",
            STOCK,
            r"is NOT active .*SGLANG_MOE_EXT_TRACE is '/dev/null/below', expected a directory",
            environment=(("SGLANG_MOE_EXT_TRACE", NOWHERE),),
            refused=True,
        ),
        "trace-disk-full": Fault(
            "the disk of the trace is full",
            "cpu",
            "the trace .* ends here: OSError: .*No space left on device",
            _disk_is_full,
        ),
        "kernel-raises": Fault(
            "the kernel raises from the first call on",
            "torch",
            "'cpu' failed its self-check .*: raised RuntimeError: no kernel image",
            _kernels(_always_raising, *CPU),
            refused=True,
        ),
        "kernel-raises-late": Fault(
            f"the kernel raises in call {LATE}",
            "torch",
            "'cpu' raised RuntimeError: device lost while routing .*; the next backend takes over",
            _kernels(_raising_late, *CPU),
        ),
        "kernel-garbage": Fault(
            "the kernel returns garbage",
            "torch",
            r"'cpu' failed its self-check .*: ids \[.*expected",
            _kernels(_returning_garbage, *CPU),
            refused=True,
        ),
        "kernel-writes-part": Fault(
            "the kernel writes all rows but the last",
            "torch",
            "'cpu' failed its self-check .*: row 0: ids .*-77.*out of range",
            _rows_written(lambda rows: rows - 1),
            refused=True,
        ),
        "kernel-writes-nothing": Fault(
            "the kernel writes nothing",
            "torch",
            "'cpu' failed its self-check .*: row 0: ids .*-77.*out of range",
            _rows_written(lambda rows: 0),
            refused=True,
        ),
        "kernel-out-of-range": Fault(
            "the kernel returns ids out of range",
            "torch",
            "'cpu' failed its self-check .*: row 0: .*out of range",
            _kernels(_returning_ids_out_of_range, *CPU),
            refused=True,
        ),
        "every-kernel-raises": Fault(
            "the kernel of every backend raises",
            "upstream",
            "no backend can route .*cpu: self-check.*torch: self-check.*reference: raised",
            _kernels(_always_raising, *EVERY),
            refused=True,
        ),
        "supports-raises": Fault(
            "the backend raises when asked whether it can serve",
            "torch",
            "'cpu' is unusable: AttributeError: .*; the next backend serves",
            _changed("sglang_moe_ext.ops.cpu_router", _supports_raises),
        ),
        "numba-missing": Fault(
            "numba is missing",
            "torch",
            "'cpu' is unusable: ModuleNotFoundError: No module named 'numba'",
            _unimportable("numba"),
        ),
        "numba-cannot-compile": Fault(
            "numba fails to compile",
            "torch",
            "'cpu' is unusable: TypingError: Failed in nopython mode pipeline unknown type;",
            _changed("numba", _cannot_compile),
        ),
        "cache-unwritable": Fault(
            "numba's cache directory cannot be written",
            "cpu",
            None,
            _reread_numba_settings,
            environment=(("NUMBA_CACHE_DIR", NOWHERE),),
        ),
    }
)


@dataclass(frozen=True)
class XpuFault:
    """What breaks on the (simulated) XPU.

    shape: the routing that it is about. backend: who is passed over, for what `reason`.
    lines: errors in the log; a backend that says what it lacks is no error.
    stock_fails: SGLang itself cannot be imported then, with or without the plugin.
    kernels: versions that the stand-in `sgl_kernel` has.
    """

    what: str
    shape: str
    backend: str
    reason: str
    inject: Inject = lambda: None
    served_by: str = "torch"
    lines: int = 0
    stock_fails: bool = False
    kernels: str = "S2,F3,B1"


_NO_TRITON = ModuleNotFoundError("No module named 'triton'", name="triton")


def _driver_without_device(triton_router: Any) -> None:
    triton_router._has_xpu_driver = lambda: True


XPU_FAULTS = MappingProxyType(
    {
        "sgl-kernel-missing": XpuFault(
            "`sgl_kernel` is missing",
            "128/6",
            "xpu",
            "sgl_kernel cannot be imported: ModuleNotFoundError: No module named 'sgl_kernel'",
            _unimportable("sgl_kernel"),
            lines=1,
            stock_fails=True,
        ),
        "sgl-kernel-raises": XpuFault(
            "`sgl_kernel` raises at import",
            "128/6",
            "xpu",
            "sgl_kernel cannot be imported: RuntimeError: undefined symbol",
            _unimportable("sgl_kernel", RuntimeError("undefined symbol: _ZN2at4_ops")),
            lines=1,
            stock_fails=True,
        ),
        "sgl-kernel-old": XpuFault(
            "`sgl_kernel` is too old for float32 logits",
            "128/6",
            "xpu",
            "topk_sigmoid takes no float32 logits here",
            kernels="S1a,F1",
        ),
        "triton-missing": XpuFault(
            "Triton is missing",
            "16/4 g4 tg2",
            "triton",
            "unusable: ModuleNotFoundError: No module named 'triton'",
            _unimportable("sglang_moe_ext.ops.triton_router", _NO_TRITON),
            lines=1,
        ),
        "triton-cannot-compile": XpuFault(
            "Triton cannot compile",
            "16/4 g4 tg2",
            "triton",
            "self-check: raised RuntimeError: 0 active drivers",
            _changed("sglang_moe_ext.ops.triton_router", _driver_without_device),
            lines=1,
        ),
    }
)
