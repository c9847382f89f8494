"""A release that serves on a plain CPU; patched, with stand-ins for its kernels, if need be."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "test" / "cpu_platform")]

import apply_patches  # noqa: E402
import fetch_releases  # noqa: E402
import release_environment  # noqa: E402
from plain_cpu.serving import Server  # noqa: E402

# Writes down who loaded it. And, as the plain CPU platform does for newer releases: SGLang's
# default for a backend without a handler is a prefill method that torch_native cannot serve.
WITNESS = """
import importlib.util, os, sys, traceback
from pathlib import Path

import wrapt


def register():
    callers = [frame.name for frame in traceback.extract_stack()]
    loader = callers[callers.index("load_plugins") - 1]
    Path(os.environ["WITNESS_FOLDER"], str(os.getpid())).write_text(loader)
    if importlib.util.find_spec("sglang.srt.platforms"):
        offer_pools()
    wrapt.register_post_import_hook(serve_mla, HANDLERS)
    wrapt.register_post_import_hook(serve_mla_in_one_file, MODEL)


def offer_pools():
    # Up to 0.5.21 a platform must bring its pools; from 0.5.22 on it may leave them to SGLang.
    from plain_cpu.platform import PlainCpuPlatform
    from sglang.srt.platforms.interface import SRTPlatform

    def mla_pool(*args, index_head_dim=None, **kwargs):
        from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool

        return MLATokenToKVPool(*args, **kwargs)

    def allocator(*args, page_size, **kwargs):
        from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator

        return TokenToKVPoolAllocator(*args, **kwargs)

    if not hasattr(SRTPlatform, "get_kv_pool_cls"):
        PlainCpuPlatform.get_mla_kv_pool_cls = lambda platform: mla_pool
        PlainCpuPlatform.get_paged_allocator_cls = lambda platform: allocator


HANDLERS = "sglang.srt.models.deepseek_common.attention_backend_handler"
MODEL = "sglang.srt.models.deepseek_v2"


def serve_mla(handlers):
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import (
        AttnForwardMethod,
    )

    method = AttnForwardMethod.MLA
    handlers.AttentionBackendRegistry.register("torch_native", lambda layer, batch: method)


def serve_mla_in_one_file(model):
    if "AttentionBackendRegistry" in vars(model) and hasattr(model, "AttnForwardMethod"):
        method = model.AttnForwardMethod.MLA
        model.AttentionBackendRegistry.register("torch_native", lambda layer, batch: method)
"""

TOKENS = 8


def make_model(folder: Path) -> Path:
    command = [sys.executable, str(ROOT / "scripts" / "make_checkpoint.py"), str(folder)]
    subprocess.run(command, check=True)
    return folder


def generate(url: str) -> list[int]:
    """The ids of TOKENS greedy tokens."""
    sampling = {"max_new_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    body = json.dumps({"text": "The router sends", "sampling_params": sampling}).encode()
    request = Request(f"{url}/generate", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=120) as answer:
        return json.load(answer)["output_ids"]


def serve(
    release: str,
    model: Path,
    folder: Path,
    *,
    environment: Mapping[str, str],
    patched: bool = True,
) -> Server:
    """A server of `release`, if need be a copy below `folder` with patch series "plugin".

    patched: False leaves a release without plugins as it is.
    Every process that loads plugins leaves a file `folder/witness/<pid>` with the name of the
    function that loaded them.
    """
    tree = fetch_releases.fetch(release)
    paths, arguments = [*release_environment.pinned(release)], []
    if not (tree / "sglang/srt/plugins").is_dir():
        copy = folder / "release"
        shutil.copytree(tree, copy)
        root = ["--root", str(copy), "--series", "plugin"]
        if patched and apply_patches.main([*root, "--apply"]) != 0:
            raise RuntimeError(f"SGLang {release} takes no plugin patch")
        paths = [release_environment.STAND_INS, copy, *paths]
        # 0.5.10 captures graphs on every device unless told not to; older ones don't know the flag.
        arguments = ["--disable-piecewise-cuda-graph"] * release.startswith("0.5.10")
    else:
        paths = [tree, *paths]
    plugin = folder / "plugin"
    info = plugin / "witness-1.dist-info"
    info.mkdir(parents=True)
    (plugin / "witness.py").write_text(WITNESS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: witness\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[sglang.srt.plugins]\nwitness = witness:register\n")
    (folder / "witness").mkdir()
    ours = {
        "PYTHONPATH": os.pathsep.join(map(str, [*paths, plugin])),
        "PYTHONWARNINGS": "ignore",
        "SGLANG_PLUGINS": "witness,moe_ext",
        "WITNESS_FOLDER": str(folder / "witness"),
    }
    return Server(
        model, folder / "server.log", arguments=arguments, environment={**ours, **environment}
    )
