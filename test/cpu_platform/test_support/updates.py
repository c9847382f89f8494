"""Talk to a running server: where do its tokens go, and update its weights in every way.

What needs a GPU is left out: CUDA IPC and NCCL.
"""

from __future__ import annotations

import base64
import json
import pickle
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from plain_cpu.serving import Server
from torch import Tensor

from sglang_moe_ext.ops.reference import reference_topk
from sglang_moe_ext.ops.spec import RouterSpec

Tensors = Mapping[str, Tensor]
Routed = dict[int, tuple[Tensor, list[list[int]]]]
GROUP = "weight_update_group"


def post(server: Server, route: str, body: object = None) -> dict[str, Any]:
    """The answer, also where its status says that the request was refused."""
    headers = {"Content-Type": "application/json"}
    request = Request(f"{server.url}/{route}", json.dumps(body or {}).encode(), headers)
    try:
        with urlopen(request, timeout=180) as answer:
            reply: dict[str, Any] = json.load(answer)
    except HTTPError as error:
        reply = json.load(error)
    return reply


def generate(
    server: Server, captured: Path, input_ids: Sequence[int] = (5, 6, 7, 8), new_tokens: int = 8
) -> Routed:
    """Per layer of one request: hidden states [T, H] before the gate, sorted ids per token."""
    before = set(captured.glob("*.pt"))
    sampling = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}
    body = {"input_ids": list(input_ids), "sampling_params": sampling}
    assert len(post(server, "generate", body)["output_ids"]) == new_tokens
    calls = [torch.load(path) for path in sorted(set(captured.glob("*.pt")) - before)]
    routed = {}
    for layer in {call["layer_id"] for call in calls}:
        hidden, ids = (
            torch.cat([call[name] for call in calls if call["layer_id"] == layer])
            for name in ("hidden_states", "ids")
        )
        routed[layer] = hidden, ids.sort(dim=1).values.tolist()
    return routed


def by_reference(weights: Tensors, layer: int, hidden: Tensor, spec: RouterSpec) -> list[list[int]]:
    gate = f"model.layers.{layer}.mlp.gate"
    logits = hidden.float() @ weights[f"{gate}.weight"].float().T
    ids = reference_topk(logits, weights[f"{gate}.e_score_correction_bias"].float(), spec)[1]
    return ids.sort(dim=1).values.tolist()


@contextmanager
def update_session(server: Server) -> Iterator[None]:
    assert post(server, "begin_weight_update")["success"]
    try:
        yield
    finally:
        assert post(server, "end_weight_update")["success"]


def from_tensor(server: Server, tensors: Tensors, load_format: str | None = None) -> dict[str, Any]:
    payload = base64.b64encode(pickle.dumps(list(tensors.items()))).decode()
    body = {"serialized_named_tensors": [payload], "load_format": load_format}
    with update_session(server):
        return post(server, "update_weights_from_tensor", body)


def from_distributed(server: Server, tensors: Tensors) -> dict[str, Any]:
    """Broadcast over gloo: this process is rank 0, the server's worker rank 1."""
    from sglang.srt.utils import init_custom_process_group

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {
        "master_address": "127.0.0.1",
        "master_port": port,
        "rank_offset": 1,
        "world_size": 2,
        "group_name": GROUP,
        "backend": "gloo",
    }
    body = {
        "names": list(tensors),
        "dtypes": [str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()],
        "shapes": [list(tensor.shape) for tensor in tensors.values()],
        "group_name": GROUP,
    }
    with _meanwhile(server, "init_weights_update_group", group) as joined:
        mine = init_custom_process_group(
            backend="gloo",
            init_method=f"tcp://127.0.0.1:{port}",
            world_size=2,
            rank=0,
            group_name=GROUP,
        )
    assert joined["success"], joined
    try:
        with (
            update_session(server),
            _meanwhile(server, "update_weights_from_distributed", body) as reply,
        ):
            for tensor in tensors.values():
                torch.distributed.broadcast(tensor, src=0, group=mine)
    finally:
        post(server, "destroy_weights_update_group", {"group_name": GROUP})
        torch.distributed.destroy_process_group(mine)
    return reply


@contextmanager
def _meanwhile(server: Server, route: str, body: object) -> Iterator[dict[str, Any]]:
    """Send a request, which needs what the caller does meanwhile; the answer is there after."""
    reply: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: reply.update(post(server, route, body)))
    thread.start()
    yield reply
    thread.join(timeout=180)
