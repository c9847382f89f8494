"""Parameter names of what we replace, as the releases 0.5.2 ... 0.5.23 have them.

A release outside these tables is not overridden: an unknown parameter may change what the
call means. Read from the released files; the registered releases suite reads them again.
"""

from __future__ import annotations

Names = tuple[str, ...]

RELEASES = ("0.5.2", "0.5.23")  # first and last that these tables were read from


def _names(text: str) -> Names:
    return tuple(text.split())


_ROUTER = (
    "hidden_states gating_output correction_bias topk renormalize num_expert_group topk_group "
    "num_fused_shared_experts routed_scaling_factor "
)
# 0.5.10 ... 0.5.23: returns logical expert ids; the caller maps them and masks padding.
ROUTER = _names(_ROUTER + "apply_routed_scaling_factor_on_output")
# 0.5.2 ... 0.5.9: maps to physical experts and masks padded rows itself.
ROUTER_THAT_MAPS = _names(
    _ROUTER + "num_token_non_padded expert_location_dispatch_info "
    "apply_routed_scaling_factor_on_output"
)
ROUTERS = (ROUTER, ROUTER_THAT_MAPS)

_POST_PROCESSOR = (
    "topk_ids topk_weights topk_config router_logits layer_id num_token_non_padded "
    "expert_location_dispatch_info "
)
POST_PROCESSORS = (
    # 0.5.21 ... 0.5.23
    _names(_POST_PROCESSOR + "padded_rows_masked"),
    # 0.5.10 ... 0.5.20
    _names(_POST_PROCESSOR),
)
# Its branches by device, where it forgets all but GPUs.
GPU_ONLY_BRANCHES = (
    # 0.5.13 ... 0.5.22
    _names("_is_cuda _is_hip"),
    # 0.5.10 ... 0.5.12
    _names("_is_cuda"),
)

_GATE = "self config quant_config prefix "
GATE_INITS = (
    # 0.5.21 ... 0.5.23
    _names(_GATE + "is_hash_moe is_deepseek_v4 vl_correction_bias"),
    # 0.5.20
    _names(_GATE + "is_hash_moe is_deepseek_v4"),
    # 0.5.13 ... 0.5.19
    _names(
        _GATE + "is_nextn is_hash_moe is_deepseek_v4 dsa_enable_prefill_cp mla_enable_prefill_cp"
    ),
    # 0.5.12
    _names(_GATE + "is_nextn is_hash_moe is_deepseek_v4"),
    # 0.5.3 ... 0.5.11
    _names(_GATE + "is_nextn"),
    # 0.5.2
    _names("self config prefix is_nextn"),
)
GATE_FORWARDS = (
    # 0.5.6 ... 0.5.23
    _names("self hidden_states gemm_output_zero_allocator forward_batch"),
    # 0.5.2 ... 0.5.5
    _names("self hidden_states gemm_output_zero_allocator"),
)

MODEL_INITIALIZERS = (
    # 0.5.9 ... 0.5.23
    _names("model_config load_config quant_config"),
    # 0.5.2
    _names("model_config load_config"),
)

DIRECT_LOADERS = (_names("model named_tensors"),)
TENSOR_UPDATERS = (_names("self named_tensors load_format"),)
