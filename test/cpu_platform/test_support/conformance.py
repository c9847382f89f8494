"""Runs the checks of failure_checks.py against every router that this machine can run.

    python -m test_support.conformance COLUMN...

prints a JSON line [check, path, column, verdict] per check. It must run in the environment that
`GROUPS` names for these columns: a process is interpreted or not, simulated or not.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from test_support.conformance_columns import COLUMNS, GROUPS, NOT_RUN, OK, WRONG, Column
from test_support.failure_checks import CHECKS, Answer, TooManyRowsError, groups


class OwnRouter:
    """One of our backends: the operation, and SGLang's select_experts with the plugin live."""

    def __init__(self, column: Column, path: str, topk: ModuleType) -> None:
        self.most_rows = column.most_rows
        self._backend, self._path, self._topk = column.backend, path, topk
        self._device = column.device

    def __call__(self, logits: Tensor, bias: Tensor, topk: int, **arguments: Any) -> Answer:
        if self._path == "select_experts":
            return self.select(logits, bias, topk, **arguments)
        weights, ids = self._operation(self._move(logits), self._move(bias), topk, **arguments)
        return weights.cpu(), ids.cpu()

    def _move(self, tensor: Tensor) -> Tensor:
        """To the device of this router, strides and offset kept; what lies between is not read."""
        if self._device == "cpu":
            return tensor
        elements = tensor.untyped_storage().nbytes() // tensor.element_size()
        whole = torch.empty(elements, dtype=tensor.dtype, device=self._device)
        moved = whole.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
        return moved.copy_(tensor)

    def _operation(self, logits: Tensor, bias: Tensor, topk: int, **arguments: Any) -> Answer:
        from sglang_moe_ext.ops import biased_grouped_topk

        return biased_grouped_topk(logits, bias, topk, **arguments, backend=self._backend)

    def select(
        self,
        logits: Tensor,
        bias: Tensor,
        topk: int,
        *,
        num_fused_shared_experts: int = 0,
        num_expert_group: int = 1,
        topk_group: int = 1,
        num_token_non_padded: Tensor | None = None,
        expert_location_dispatch_info: Any = None,
        capture: Any = None,
        **arguments: Any,
    ) -> Answer:
        from sglang.srt.configs.shared_experts import SharedExpertsConfig

        config = self._topk.TopKConfig(
            top_k=topk,
            use_grouped_topk=True,
            num_expert_group=num_expert_group,
            topk_group=topk_group,
            correction_bias=self._move(bias),
            shared_experts=SharedExpertsConfig(num_fused_shared_experts=num_fused_shared_experts),
            **arguments,
        )
        info = expert_location_dispatch_info
        for name, value in vars(info).items() if info else ():
            if isinstance(value, Tensor):
                setattr(info, name, self._move(value))
        if num_token_non_padded is not None:
            num_token_non_padded = self._move(num_token_non_padded)
        capturer = mock.Mock()
        capturer.capture = lambda layer_id, topk_indices: capture(topk_indices.cpu())
        with mock.patch.object(
            self._topk,
            "get_global_experts_capturer",
            return_value=capturer if capture else None,
        ):
            output = self._topk.select_experts(
                torch.zeros(len(logits), 8, device=self._device),
                self._move(logits),
                config,
                layer_id=0,
                num_token_non_padded=num_token_non_padded,
                expert_location_dispatch_info=info,
            )
        return output.topk_weights.cpu(), output.topk_ids.cpu()


class StockRouter(OwnRouter):
    """SGLang's own function. It promises no order of columns, so they are put into ours."""

    def __init__(self, column: Column, path: str, topk: ModuleType, stock: Any) -> None:
        super().__init__(column, path, topk)
        self._stock, self._interpreted = stock, column.interpreted

    def __call__(self, logits: Tensor, bias: Tensor, topk: int, **arguments: Any) -> Answer:
        weights, ids = super().__call__(logits, bias, topk, **arguments)
        routed = topk - arguments.get("num_fused_shared_experts", 0)
        key = logits.double().sigmoid().float() + bias.float()
        experts = key.shape[1]
        key = key.gather(1, ids[:, :routed].long().clamp(0, experts - 1)).nan_to_num(nan=-1e38)
        by_id = ids[:, :routed].sort(dim=1, stable=True).indices
        in_id_order = key.gather(1, by_id)
        order = by_id.gather(1, in_id_order.sort(dim=1, descending=True, stable=True).indices)
        order = torch.cat([order, torch.arange(routed, topk).expand(len(ids), -1)], dim=1)
        return weights.gather(1, order), ids.gather(1, order)

    def _operation(self, logits: Tensor, bias: Tensor, topk: int, **arguments: Any) -> Answer:
        arguments = groups(1, 1) | arguments  # no numbers mean no groups only to us
        with self._installed():
            return self._stock(logits, logits, bias, topk, **arguments)

    def select(self, *args: Any, **arguments: Any) -> Answer:
        with self._installed():
            return super().select(*args, **arguments)

    @contextlib.contextmanager
    def _installed(self) -> Iterator[None]:
        """Instead of our plugin; interpreted, SGLang's CUDA branch without FlashInfer."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(self._topk, "biased_grouped_topk", self._stock))
            if self._interpreted:
                from sglang.kernels.ops.moe import moe_route_radix

                # Its radix kernel for 896 experts needs a CUDA compiler.
                stack.enter_context(
                    mock.patch.object(moe_route_radix, "covered", return_value=False)
                )
                stack.enter_context(mock.patch.object(self._topk, "_is_cuda", True))
                stack.enter_context(
                    mock.patch.object(self._topk, "fused_topk_deepseek", None, create=True)
                )
            yield


def _routers(column: Column, path: str, topk: ModuleType, stock: Any) -> OwnRouter:
    if column.backend is None:
        return StockRouter(column, path, topk, stock)
    return OwnRouter(column, path, topk)


def run_columns(names: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    """(check, path, column, verdict): "ok", "not run: why" or "wrong: what was found"."""
    from sglang.srt.layers.moe import topk

    stock = topk.biased_grouped_topk_gpu
    from sglang.srt.plugins import load_plugins

    load_plugins()
    assert topk.biased_grouped_topk is not stock, "the plugin is not live"

    from sglang_moe_ext import env
    from sglang_moe_ext.ops import dispatch
    from sglang_moe_ext.ops.choose import BackendError
    from sglang_moe_ext.ops.selfcheck import PoisonedMemory

    for check in CHECKS:
        for name in names:
            column = COLUMNS[name]
            os.environ["SGLANG_MOE_EXT_BACKEND"] = column.backend or "reference"
            env.settings.cache_clear()
            dispatch.reset()
            for path in check.paths:
                verdict = OK
                try:
                    with PoisonedMemory():
                        check.run(_routers(column, path, topk, stock))
                except (BackendError, TooManyRowsError) as error:
                    verdict = f"{NOT_RUN}: {error}"
                except BaseException as error:  # pytest's failures are no Exception
                    if isinstance(error, KeyboardInterrupt):
                        raise
                    verdict = f"{WRONG}: {type(error).__name__}: {str(error)[:500]}"
                yield check.name, path, name, verdict


def environment(group: str, simulated: Mapping[str, str]) -> dict[str, str]:
    """For a process of this group; `simulated` is that of sim_xpu.sim_environment()."""
    base = simulated if group == "simulated XPU" else os.environ
    clean = {k: v for k, v in base.items() if not k.startswith(("SGLANG_", "PLAIN_CPU"))}
    return {
        **clean,
        "OMP_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1",  # SGLang's PyTorch router as it is written
        "SGLANG_PLUGINS": "moe_ext",
        "SGLANG_MOE_EXT_STRICT": "1",
        "SGLANG_MOE_EXT_BACKEND": "reference",  # forced, so that nothing falls back to SGLang
        **({"TRITON_INTERPRET": "1"} if group == "interpreter" else {}),
    }


Results = dict[str, dict[str, dict[str, str]]]  # check -> path -> column -> verdict


def run_groups(groups: Sequence[str], simulated: Mapping[str, str], timeout_s: float) -> Results:
    """All checks on all columns of these groups, a process each at once."""
    processes = {
        group: subprocess.Popen(
            [sys.executable, "-m", "test_support.conformance", *GROUPS[group]],
            env=environment(group, simulated),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for group in groups
    }
    results: Results = {}
    try:
        for group, process in processes.items():
            output, errors = process.communicate(timeout=timeout_s)
            died = f"{WRONG}: the process ended with {process.returncode}: {errors[-1500:]}"
            for check in CHECKS:
                for path in check.paths:
                    for column in GROUPS[group]:
                        results.setdefault(check.name, {}).setdefault(path, {})[column] = died
            for line in output.splitlines():
                if line.startswith('["F'):
                    name, path, column, verdict = json.loads(line)
                    results[name][path][column] = verdict
    finally:
        for process in processes.values():
            process.kill()
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    for result in run_columns(sys.argv[1:]):
        print(json.dumps(result), flush=True)
