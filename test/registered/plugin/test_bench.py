"""bench judges before it times: the table, the CSV, the exit code, what keeps it from running."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sim_xpu import sim_environment

from sglang_moe_ext import __version__, cli
from sglang_moe_ext.bench import context, measure, report
from sglang_moe_ext.bench.judge import make_inputs
from sglang_moe_ext.bench.peers import PEERS
from sglang_moe_ext.bench.result import SKIPPED, TIMED, Result
from sglang_moe_ext.bench.routers import OURS
from sglang_moe_ext.bench.shapes import MODELS, parse_shapes
from sglang_moe_ext.bench.timing import time_calls, time_laps
from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.ops import cpu_router, torch_router
from sglang_moe_ext.ops.backend import Prepared
from sglang_moe_ext.ops.choose import MODULES
from sglang_moe_ext.ops.spec import RouterSpec

register_cpu_ci(est_time=27, suite="base-a-test-cpu")

TINY = ("--device", "cpu", "--shapes", "16/2g4tg2", "--tokens", "3")
EAGER = (*TINY, "--peers", "torch_eager")


def bench(*arguments: object, absent: str = "nothing") -> subprocess.CompletedProcess[str]:
    """The command in a process where one library cannot be imported."""
    code = f"import sys; sys.modules[{absent!r}] = None; from sglang_moe_ext.cli import main\n"
    return subprocess.run(
        [sys.executable, "-c", f"{code}sys.exit(main(sys.argv[1:]))", "bench"]
        + [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


def rows_of(table: str) -> dict[str, list[str]]:
    """Router -> what stands behind its name."""
    rows = re.findall(r"^(\w+(?: \*)?) +(?:ours|peer|floor) +(.*)$", table, re.MULTILINE)
    return {name: cells.split() for name, cells in rows}


def test_a_run_gives_a_table_and_a_csv(tmp_path: Path) -> None:
    out = tmp_path / "times.csv"
    process = subprocess.run(
        [sys.executable, "-m", "sglang_moe_ext", "bench", *EAGER, "--out", out, "--commit", "abc"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    rows = rows_of(process.stdout)
    assert list(rows) == ["cpu *", "torch", "torch_eager", "sigmoid"]
    assert re.search(r"^16/2g4tg2 +tokens +3$", process.stdout, re.MULTILINE)
    assert "triton skipped: no Triton for cpu tensors" in process.stdout.splitlines()
    assert "bench: 16/2g4tg2 torch_eager" in process.stderr.splitlines()

    with out.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(r["router"], r["role"]) for r in table] == [
        ("cpu", "ours"),
        ("torch", "ours"),
        ("torch_eager", "peer"),
        ("sigmoid", "floor"),
    ]
    assert {(r["shape"], r["tokens"], r["measure"]) for r in table} == {("16/2g4tg2", "3", "call")}
    assert {r["commit"] for r in table} == {"abc"}
    medians = {r["router"]: float(r["median_us"]) for r in table}
    for name, cells in rows.items():
        (shown,) = cells
        assert float(shown) == pytest.approx(medians[name.removesuffix(" *")], rel=0.06)
    (ratio,) = re.findall(r"^cpu / best peer +(\S+)$", process.stdout, re.MULTILINE)
    assert float(ratio) == pytest.approx(medians["cpu"] / medians["torch_eager"], abs=0.006)


def test_a_wrong_router_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(spec: RouterSpec) -> Prepared:
        right = torch_router.prepare(spec).run

        def run(logits, bias):  # type: ignore[no-untyped-def]
            weights, ids = right(logits, bias)
            return weights, (ids + 1) % spec.num_experts

        return Prepared(run, "off by one expert")

    monkeypatch.setattr(cpu_router, "prepare", prepare)
    assert cli.main(["bench", *EAGER]) == 1
    text = capsys.readouterr().out
    rows = rows_of(text)
    assert rows["cpu"] == ["WRONG"]
    assert float(rows["torch *"][0]) > 0  # the choice passes over what is wrong
    assert re.search(r"^cpu WRONG, not timed \(16/2g4tg2, 3 tokens\): row \d+: ids", text, re.M)


def test_a_wrong_peer_is_said_to_be_and_no_failure_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def biased(spec: RouterSpec):  # type: ignore[no-untyped-def]
        right = PEERS["torch_eager"](spec)
        return lambda logits, bias: right(logits + 10 * bias, bias)

    monkeypatch.setitem(PEERS, "flashinfer", biased)
    assert cli.main(["bench", *TINY, "--peers", "flashinfer"]) == 0
    text = capsys.readouterr().out
    assert rows_of(text)["flashinfer"] == ["WRONG"]
    assert re.search(r"^cpu / best peer +-$", text, re.MULTILINE)


def test_a_router_that_raises_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(spec: RouterSpec) -> Prepared:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(cpu_router, "prepare", prepare)
    assert cli.main(["bench", *EAGER]) == 1
    text = capsys.readouterr().out
    assert rows_of(text)["cpu"] == ["failed"]
    assert "cpu failed (16/2g4tg2, 3 tokens): RuntimeError: no kernel image" in text


def test_without_torch() -> None:
    process = bench(*EAGER, absent="torch")
    assert process.returncode == 2
    assert process.stderr.startswith("bench: needs torch, which is not installed: install")
    assert process.stderr.count("\n") == 1
    assert bench("--help", absent="torch").returncode == 0


@pytest.mark.parametrize(
    ("library", "router", "peers"),
    [("numba", "cpu", ["torch_eager"]), ("sglang", "sglang_eager", ["sglang_eager"])],
    ids=["numba", "sglang"],
)
def test_without_a_library_its_router_is_skipped(
    library: str, router: str, peers: list[str]
) -> None:
    process = bench(*TINY, "--peers", *peers, absent=library)
    assert process.returncode == 0, process.stderr
    assert re.search(rf"^{router} skipped: .*{library}", process.stdout, re.MULTILINE)
    assert router not in rows_of(process.stdout)
    assert f"{'torch' if library == 'numba' else 'cpu'} *" in rows_of(process.stdout)


def test_list_needs_no_torch() -> None:
    process = bench("--list", absent="torch")
    assert process.returncode == 0, process.stderr
    shapes, routers = process.stdout.splitlines()
    assert all(f"{shape} ({model})" in shapes for shape, model in MODELS.items())
    assert all(f"{name} (peer)" in routers for name in PEERS)
    assert all(f"{name} (ours)" in routers for name in OURS)


def test_every_backend_but_the_judge_is_timed() -> None:
    assert set(OURS) == set(MODULES) - {"reference"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "256x8"], "argument --shapes: found '256x8', expected experts/top-k"),
        (["--tokens", "0"], "argument --tokens: found '0', expected a whole number from 1"),
        (["--shapes", "16/2g3tg1"], "bench: --shapes 16/2g3tg1: num_expert_group is 3, expected"),
        (["--out", "/nowhere/times.csv"], "bench: --out /nowhere/times.csv: there is no directory"),
    ],
    ids=["shape", "tokens", "impossible shape", "directory"],
)
def test_what_cannot_run_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(["bench", *arguments])
    except SystemExit as error:  # argparse
        code = error.code  # type: ignore[assignment]
    assert code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_a_device_that_is_not_there(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    if device == measure.best_device():
        pytest.skip(f"this machine has {device}")
    assert cli.main(["bench", "--device", device]) == 2
    assert f"bench: --device {device}: torch" in capsys.readouterr().err


def test_other_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("os.getloadavg", lambda: (0.3, 9.0, 9.0))
    assert context.find_other_work() is None
    monkeypatch.setattr("os.getloadavg", lambda: (3.14, 0.0, 0.0))
    assert "busy, load average 3.1 on 2 CPUs" in str(context.find_other_work())


@pytest.mark.skipif(not shutil.which("c++"), reason="the simulated XPU needs a C++ compiler")
def test_an_xpu_is_found_and_timed_in_laps() -> None:
    """On the simulated device: no Intel hardware takes part."""
    arguments = ("--shapes", "256/8g8tg4", "--tokens", "1", "3", "--peers", "torch_eager")
    process = subprocess.run(
        [sys.executable, "-m", "sglang_moe_ext", "bench", *arguments],
        env=sim_environment(variant="S2,F3,B1", mode="strict", slack=False),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert lines[0].startswith("simulated XPU")
    assert re.search(r"tokens +1 call +1 lap +3 lap$", process.stdout, re.MULTILINE)
    rows = rows_of(process.stdout)
    assert all(float(cell) > 0 for cells in rows.values() for cell in cells)
    assert list(rows) == ["xpu *", "torch", "torch_eager", "sigmoid"]
    assert "cpu skipped: tensors are on xpu, expected cpu" in lines


@pytest.mark.parametrize("timer", [time_calls, time_laps])
def test_every_input_gets_its_turn(timer) -> None:  # type: ignore[no-untyped-def]
    inputs = make_inputs(RouterSpec(16, 2), 3)
    assert len({float(each.logits.sum()) for each in inputs}) == 16
    seen: list[int] = []

    def run(logits, bias):  # type: ignore[no-untyped-def]
        seen.append(next(i for i, each in enumerate(inputs) if each.logits is logits))
        return logits, bias

    assert all(seconds > 0 for seconds in timer(run, inputs))
    assert seen == list(range(16)) * (len(seen) // 16)


def test_a_gpu_has_a_column_per_measure() -> None:
    """The device's own time for every number of tokens, the launcher's for one."""
    assert measure.measures("cuda", 1) == ("call", "graph")
    assert measure.measures("cuda", 16) == ("graph",)
    (shape,) = parse_shapes("384/8")

    def timed(router: str, role: str, tokens: int, kind: str, us: float) -> Result:
        timing = {"median_us": us}
        return Result(shape.text, router, role, tokens, kind, TIMED, timing=timing)

    results = [
        timed("triton", "ours", 1, "call", 16.0),
        timed("triton", "ours", 1, "graph", 1.5),
        timed("triton", "ours", 8192, "graph", 2.0),
        Result(shape.text, "cpu", "ours", 1, "call", SKIPPED, "not here"),
        timed("sglang_gate", "peer", 1, "call", 51.0),
        timed("sglang_gate", "peer", 1, "graph", 3.0),
        timed("sglang_gate", "peer", 8192, "graph", 1.0),
    ]
    lines = report.block(shape, results, "triton").splitlines()
    assert lines[0].split()[-7:] == ["tokens", "1", "call", "1", "graph", "8192", "graph"]
    assert lines[1].split() == ["triton", "*", "ours", "16.0", "1.50", "2.00"]
    assert lines[-1].split()[-3:] == ["0.31", "0.50", "2.00"]
    assert len(lines) == 4


def test_the_commit_is_ours_or_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment within somebody else's checkout is no checkout of ours."""
    foreign = tmp_path / "site-packages" / "context.py"
    foreign.parent.mkdir()
    foreign.touch()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    monkeypatch.setattr(context, "__file__", str(foreign))
    assert context.describe_machine("cpu", None)["commit"] == __version__
    subprocess.run([*git, "add", "."], check=True)
    assert re.fullmatch(r"[0-9a-f]{7,}-dirty", context.describe_machine("cpu", None)["commit"])


if __name__ == "__main__":
    run_file(__file__)
