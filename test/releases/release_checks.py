"""What is checked on the real files of an SGLang release, without importing SGLang."""

import ast
import py_compile
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import apply_patches  # noqa: E402
import fetch_releases  # noqa: E402

from sglang_moe_ext import signatures  # noqa: E402
from sglang_moe_ext.patch_files import Release, find_patches  # noqa: E402
from sglang_moe_ext.patching import plan  # noqa: E402

ALL = list(fetch_releases.recorded())
PER_COMMIT = [ALL[-1], "0.5.16", "0.5.9"]


def package_of(release: str) -> Path:
    """The release's `sglang` folder; skips the test if the registry cannot be reached."""
    try:
        return fetch_releases.fetch(release) / "sglang"
    except fetch_releases.DownloadError as error:
        pytest.skip(str(error))


def parameters(function: ast.FunctionDef) -> tuple[str, ...]:
    """Parameter names; the targets have neither star nor position-only parameters."""
    names = [argument.arg for argument in function.args.args]
    assert ast.unparse(function.args).count("*") == 0
    return tuple(names)


def definitions(body: list[ast.stmt], kind: type) -> dict[str, ast.stmt]:
    return {node.name: node for node in body if isinstance(node, kind)}


def check_router_signature(package: Path) -> None:
    tree = ast.parse((package / "srt/layers/moe/topk.py").read_text("utf-8"))
    functions = definitions(tree.body, ast.FunctionDef)
    router = parameters(functions["biased_grouped_topk_gpu"])
    assert router in signatures.ROUTERS
    aliases = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    assert "biased_grouped_topk = biased_grouped_topk_gpu" in aliases
    calls = [
        node
        for node in ast.walk(functions["select_experts"])
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "biased_grouped_topk"
    ]
    assert len(calls) == 1
    assert not calls[0].args
    keywords = [keyword.arg for keyword in calls[0].keywords]
    assert set(keywords) == set(router)


def check_gate_signature(package: Path) -> None:
    tree = ast.parse((package / "srt/models/deepseek_v2.py").read_text("utf-8"))
    gate = definitions(tree.body, ast.ClassDef)["MoEGate"]
    methods = definitions(gate.body, ast.FunctionDef)
    assert set(methods) == {"__init__", "forward"}
    init, forward = parameters(methods["__init__"]), parameters(methods["forward"])
    assert init in signatures.GATE_INITS
    assert forward in signatures.GATE_FORWARDS
    built = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "MoEGate"
    ]
    assert len(built) == 1
    assert not built[0].args
    assert {keyword.arg for keyword in built[0].keywords} == set(init) - {"self"}


def check_update_signatures(package: Path) -> None:
    """Where updates are written, and that loaders call `load_weights` or end with `eval()`."""
    executor = package / "srt" / "model_executor"
    file, owner = executor / "model_runner_components" / "weight_updater.py", "WeightUpdater"
    if not file.exists():
        file, owner = executor / "model_runner.py", "ModelRunner"
    tree = ast.parse(file.read_text("utf-8"))
    direct = definitions(tree.body, ast.FunctionDef)["_model_load_weights_direct"]
    assert parameters(direct) in signatures.DIRECT_LOADERS
    methods = definitions(definitions(tree.body, ast.ClassDef)[owner].body, ast.FunctionDef)
    update = methods["update_weights_from_tensor"]
    assert parameters(update) in signatures.TENSOR_UPDATERS
    called = {ast.unparse(node.func) for node in ast.walk(update) if isinstance(node, ast.Call)}
    assert "_model_load_weights_direct" in called
    loaders = ast.parse((package / "srt/model_loader/loader.py").read_text("utf-8"))
    for name, loader in definitions(loaders.body, ast.ClassDef).items():
        load = definitions(loader.body, ast.FunctionDef).get("load_model")
        # Ours is called in either, so one of them is enough.
        if load is None or name == "BaseModelLoader" or "model.load_weights(" in ast.unparse(load):
            continue
        returned = [ast.unparse(n.value) for n in ast.walk(load) if isinstance(n, ast.Return)]
        for value in returned:
            ends = re.search(r"\.eval\(\)$|^load_model_with|^(super\(\)|self)\._?\w+\(", value)
            assert ends, f"{name} returns {value}"


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below `folder`; None marks a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def check_patches_round_trip(release: str, package: Path, scratch: Path) -> None:
    """Apply, compile, revert to the same bytes, apply again; on copies of the files it edits."""
    patches = find_patches(ROOT / "patches", Release.parse(release))
    _, texts = plan(patches, apply_patches.reader(package))
    copy = scratch / "sglang"
    markers = ("srt/managers/scheduler.py", "launch_server.py", "version.py", "_version.py")
    for path in {*texts, *markers}:
        if (package / path).is_file():
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(package / path, copy / path)
    before = contents(copy)
    root = ["--root", str(scratch)]
    assert apply_patches.main([*root, "--apply"]) == 0
    after = contents(copy)
    assert {path for path in after if after[path] != before.get(path)} >= set(texts)
    for path in texts:
        py_compile.compile(str(copy / path), cfile=str(scratch / "compiled"), doraise=True)
    assert apply_patches.main([*root, "--check"]) == 0
    assert apply_patches.main([*root, "--revert"]) == 0
    assert contents(copy) == before
    assert apply_patches.main([*root, "--apply"]) == 0
    assert contents(copy) == after
