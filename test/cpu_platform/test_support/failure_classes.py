"""The classes of failures that reached users of router kernels, and where each is tested.

Numbers as in the survey of public reports from which they come. F01 to F40 are run by
conformance.py against every backend; of the others, some are tested in files of their own and
some can't reach a router.
"""

from __future__ import annotations

from typing import NamedTuple


class FailureClass(NamedTuple):
    """what: goes wrong. tests: further ones, `file::test` under test/registered. unreachable:
    why it can't happen in our code."""

    what: str
    tests: tuple[str, ...] = ()
    unreachable: str = ""


LOADING = "loading/test_checked_loading.py::test_a_defect_is_refused"
CAPTURE = "cuda/test_triton_router_cuda.py::test_graph_replay_with_changed_inputs"
TRAINING = "balances experts in training; we route"

FAILURE_CLASSES = {
    "F01": FailureClass("two experts tied at the top of a group count once"),
    "F02": FailureClass("a group of equals loses its second best"),
    "F03": FailureClass("dropped groups masked with 0 beat negative keys"),
    "F04": FailureClass("the running maximum starts too high"),
    "F05": FailureClass("groups ranked by their maximum, not the top two"),
    "F06": FailureClass("ties, or rows, depend on the batch"),
    "F07": FailureClass("a tie across the cut makes NaN"),
    "F08": FailureClass("more experts than the kept groups hold are taken"),
    "F09": FailureClass("experts or columns beyond a fixed capacity lost"),
    "F10": FailureClass("a NaN or infinite row gives one id, or spoils others"),
    "F11": FailureClass("a NaN logit is chosen first"),
    "F12": FailureClass("banned experts weigh, forced ones lose"),
    "F13": FailureClass("the bias is rounded to 16 bits", (LOADING,)),
    "F14": FailureClass("scores are kept in 16 bits"),
    "F15": FailureClass(
        "logits are rounded to 16 bits",
        (
            "plugin/test_installed_sglang.py::test_the_gate_keeps_its_contract",
            "server/test_against_transformers.py::test_bfloat16_router",
        ),
    ),
    "F16": FailureClass("a buffer is read in another dtype"),
    "F17": FailureClass("the sigmoid's tail is flushed to 0"),
    "F18": FailureClass("weights recovered as key minus bias"),
    "F19": FailureClass("0/0 where the scores underflow"),
    "F20": FailureClass("an epsilon swallows small sums"),
    "F21": FailureClass("weights taken from biased keys"),
    "F22": FailureClass("the factor applied twice, or never"),
    "F23": FailureClass("a shared slot scaled wrongly"),
    "F24": FailureClass("the shared column missing or doubled"),
    "F25": FailureClass("several shared slots share a column"),
    "F26": FailureClass("shared ids drawn at random"),
    "F27": FailureClass("one group as 0 or 1 differs"),
    "F28": FailureClass("rows left unwritten"),
    "F29": FailureClass("beyond so many rows, other answers"),
    "F30": FailureClass("strides or offsets ignored"),
    "F31": FailureClass("element offsets in 32 bits"),
    "F32": FailureClass("reads beyond the last expert"),
    "F33": FailureClass("unsupported sizes give wrong answers"),
    "F34": FailureClass("groups of one expert"),
    "F35": FailureClass("no rows"),
    "F36": FailureClass("padded rows are routed"),
    "F37": FailureClass("the mark of padding used as an index"),
    "F38": FailureClass("a stale count of valid rows"),
    "F39": FailureClass("logical ids not remapped, or twice"),
    "F40": FailureClass("captured ids are physical"),
    "F41": FailureClass(
        "load counts include padding",
        unreachable="SGLang counts; it is handed the masked ids of F36",
    ),
    "F42": FailureClass(
        "compiled or captured differs from eager",
        ("ops/test_dispatch.py::test_torch_compile_sees_one_node", CAPTURE),
    ),
    "F43": FailureClass(
        "a race with the kernel before, or between threads",
        (CAPTURE, "kernels/test_cpu_router.py::test_calls_from_several_threads_at_once"),
    ),
    "F44": FailureClass(
        "a backend of another device is called or missing",
        (
            "ops/test_dispatch.py::test_a_missing_module_is_a_reason",
            "xpu/test_xpu_server.py::test_groups_that_no_kernel_serves",
        ),
    ),
    "F45": FailureClass("the bias is never filled, or stale after an update", (LOADING,
        "server/test_updates.py::test_from_disk")),
    "F46": FailureClass("the bias is absent", (LOADING,)),
    "F47": FailureClass("the gate is quantised", (LOADING,)),
    "F48": FailureClass("the bias is not finite", (LOADING,)),
    "F49": FailureClass(
        "experts fused that can't be",
        unreachable="SGLang decides; a gate of the wrong shape is refused at load",
    ),
    "F50": FailureClass("counts rounded to 16 bits", unreachable=TRAINING),
    "F51": FailureClass("the bias updated too often or too rarely", unreachable=TRAINING),
    "F52": FailureClass("a padding mask of the wrong shape", unreachable=TRAINING),
    "F53": FailureClass("the bias drifts", unreachable=TRAINING),
    "F54": FailureClass("imbalance averaged wrongly", unreachable=TRAINING),
}  # fmt: skip
