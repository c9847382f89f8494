"""A patched release that serves on a plain CPU, with stand-ins for the kernels of its era."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "test" / "cpu_platform")]

import apply_patches  # noqa: E402
import fetch_releases  # noqa: E402
import release_environment  # noqa: E402
from plain_cpu.serving import Server  # noqa: E402

# Writes down who loaded it. And, as the plain CPU platform does for newer releases: SGLang's
# default for a backend without a handler is a prefill method that torch_native cannot serve.
WITNESS = """
import os, sys, traceback
from pathlib import Path

import wrapt


def register():
    callers = [frame.name for frame in traceback.extract_stack()]
    loader = callers[callers.index("load_plugins") - 1]
    Path(os.environ["WITNESS_FOLDER"], str(os.getpid())).write_text(loader)
    wrapt.register_post_import_hook(serve_mla, HANDLERS)
    wrapt.register_post_import_hook(serve_mla_in_one_file, MODEL)


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


def serve(
    release: str,
    model: Path,
    folder: Path,
    *,
    environment: Mapping[str, str],
    patched: bool = True,
) -> Server:
    """A server of `release` below `folder`, with patch series "plugin" unless not `patched`.

    Every process that loads plugins leaves a file `folder/witness/<pid>` with the name of the
    function that loaded them.
    """
    copy = folder / "release"
    shutil.copytree(fetch_releases.fetch(release), copy)
    root = ["--root", str(copy), "--series", "plugin"]
    if patched and apply_patches.main([*root, "--apply"]) != 0:
        raise RuntimeError(f"SGLang {release} takes no plugin patch")
    plugin = folder / "plugin"
    info = plugin / "witness-1.dist-info"
    info.mkdir(parents=True)
    (plugin / "witness.py").write_text(WITNESS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: witness\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[sglang.srt.plugins]\nwitness = witness:register\n")
    (folder / "witness").mkdir()
    paths = [release_environment.STAND_INS, copy, *release_environment.pinned(release), plugin]
    ours = {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONWARNINGS": "ignore",
        "SGLANG_PLUGINS": "witness,moe_ext",
        "WITNESS_FOLDER": str(folder / "witness"),
    }
    # 0.5.10 captures graphs on every device unless told not to; older ones don't know the flag.
    arguments = ["--disable-piecewise-cuda-graph"] * release.startswith("0.5.10")
    return Server(
        model, folder / "server.log", arguments=arguments, environment={**ours, **environment}
    )
