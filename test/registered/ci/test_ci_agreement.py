"""Our scanner and SGLang's agree: on generated files, on our own files, on who runs what."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.ci.partition import partition
from sglang_moe_ext.ci.registration import MARKERS, Registration
from sglang_moe_ext.ci.scan import NOT_TEST_FILES, Scan, scan_tree
from sglang_moe_ext.ci.suites import known_suites

register_cpu_ci(est_time=2, suite="base-a-test-cpu")

REGISTERED = Path(__file__).resolve().parents[1]
GENERATED_FILES = 800

BARE = "{}"
IGNORED = [
    "ci.{}",
    "x = {}",
    "print({})",
    "{}, 1",
    "if True:\n    {}",
    "for _ in [0]:\n    {}",
    "def f():\n    {}",
    "try:\n    {}\nfinally:\n    pass",
]
MAIN = "if __name__ == '__main__':\n    run_file(__file__)\n"
ODD_MAINS = [
    "if __name__ == '__main__':\n    x = [f() for f in []]\n",
    "if True:\n    if __name__ == '__main__':\n        run_file(__file__)\n",
    "if __name__ != '__main__':\n    run_file(__file__)\n",
    "if '__main__' == __name__:\n    run_file(__file__)\n",
    "if __name__ == '__main__':\n    pass\nelse:\n    run_file(__file__)\n",
    "",
]
IMPORTS = [
    "from sglang_moe_ext.ci import {}",
    "from sglang.test.ci.ci_register import {}",
    "from sglang_moe_ext.ci import *  # {}",
]
# By argument: right literals; other literals; expressions.
VALUES = {
    "est_time": (["5", "2.5", "1_000"], ["'5'", "None", "0", "True"], ["-5", "T"]),
    "suite": (["'s'", '"a" "b"'], ["None", "7", "b's'"], ["SUITE", "f's'"]),
    "nightly": (["True", "False"], ["None", "1"], ["not False"]),
    "disabled": (["None", "'slow'"], ["False", "''"], ["'a' + 'b'"]),
    "stage": (["'base-b'"], ["None", "1"], ["STAGE"]),
    "runner_config": (["'1-gpu'"], ["None", "1"], ["str(1)"]),
}
SILENT_KINDS = {
    "ignored": "which registers nothing",
    "origin": "is not imported from",
    "expression": "reads as not given",
    "none": "counts as given",
    "seconds": "expected a positive number",
    "reason": "expected the reason why",
}


def generate(rng: random.Random) -> tuple[str, set[str]]:
    """A test file, and which kinds of problems that SGLang is silent about it has."""
    markers = rng.sample(sorted(MARKERS), rng.choice([1, 1, 1, 2, 3]))
    imports = rng.choice(IMPORTS)
    kinds = set()
    body = []
    if rng.random() < 0.1:
        imports = "from somewhere import {}"
    if rng.random() < 0.1:
        body.append(f"from sglang_moe_ext.ci import {markers[0]} as r")
        kinds.add("ignored")
    for marker in markers:
        arguments, argument_kinds = generate_arguments(rng)
        form = rng.choice(IGNORED) if rng.random() < 0.2 else BARE
        body.append(form.format(f"{marker}({arguments})"))
        if form != BARE:
            kinds.add("ignored")
            continue
        kinds |= argument_kinds
        if "somewhere" in imports:
            kinds.add("origin")
    main = rng.choice(ODD_MAINS) if rng.random() < 0.15 else MAIN
    return "\n".join([imports.format(", ".join(markers)), *body, main]), kinds


def generate_arguments(rng: random.Random) -> tuple[str, set[str]]:
    names = ["est_time", *rng.choice([["suite"], ["suite"], ["stage", "runner_config"]])]
    names += rng.sample(["nightly", "disabled"], rng.choice([0, 0, 1, 2]))
    if rng.random() < 0.1:
        names = rng.sample(sorted(VALUES), rng.randint(0, len(VALUES)))
    values = {name: rng.choice(VALUES[name][0]) for name in names}
    kinds = set()
    if names and rng.random() < 0.3:
        odd = rng.choice(names)
        _, literals, expressions = VALUES[odd]
        values[odd] = rng.choice(literals + expressions)
        if values[odd] in expressions:
            kinds.add("expression")
        elif values[odd] == "None" and odd in ("suite", "stage", "runner_config"):
            kinds.add("none")
        elif odd == "est_time" and values[odd] in ("0", "True"):
            kinds.add("seconds")
        elif values[odd] == "''":
            kinds.add("reason")
    positional = rng.choice([0, 0, 1, 2]) if names[:2] == ["est_time", "suite"] else 0
    arguments = [values[name] for name in names[:positional]]
    arguments += [f"{name}={values[name]}" for name in names[positional:]]
    if rng.random() < 0.05:
        arguments.append(rng.choice(["**A", "surprise=1", "*A", "est_time=5"]))
    return ", ".join(arguments), kinds


def test_on_generated_files(tmp_path: Path, scan_both: Callable[[Path], Scan]) -> None:
    rng = random.Random(0)
    seen: Counter[str] = Counter()
    path = tmp_path / "test_generated.py"
    for _ in range(GENERATED_FILES):
        source, expected = generate(rng)
        path.write_text(source, encoding="utf-8")
        scan = scan_both(path)
        silent = "\n".join(problem.text for problem in scan.problems if problem.silent)
        found = {kind for kind, text in SILENT_KINDS.items() if text in silent}
        assert found == expected, f"{silent}\n{source}"
        seen.update(found)
        seen["clean"] += not scan.problems
        seen["refused"] += any(not problem.silent for problem in scan.problems)
        seen["collected with a silent problem"] += bool(scan.registrations) and bool(silent)
    # The agreement means something only if every sort of file was among them.
    assert all(seen[kind] >= 10 for kind in SILENT_KINDS), seen
    assert min(seen["clean"], seen["refused"], seen["collected with a silent problem"]) > 100, seen


def test_on_our_own_files(
    collect_like_sglang: Callable[[list[Path]], list[Registration]],
) -> None:
    paths = [p for p in sorted(REGISTERED.rglob("*.py")) if p.name not in NOT_TEST_FILES]
    scan = scan_tree(REGISTERED, known_suites())
    assert not scan.problems, "\n".join(map(str, scan.problems))
    assert [replace(r, line=0) for r in scan.registrations] == collect_like_sglang(paths)
    assert str(Path(__file__).resolve()) in {r.path for r in scan.registrations}


@pytest.mark.parametrize("size", [1, 2, 3, 7], ids="shares={}".format)
@pytest.mark.parametrize("files", [0, 1, 5, 40], ids="files={}".format)
def test_on_shares(sglang_scanner: ModuleType, files: int, size: int) -> None:
    rng = random.Random(files * 10 + size)
    registrations = [
        Registration(f"test_{i}.py", 1, "cpu", rng.choice([1.0, 1.0, rng.uniform(1, 60)]), "s")
        for i in range(files)
    ]
    theirs = [
        sglang_scanner.CIRegistry(sglang_scanner.HWBackend.CPU, r.path, r.est_time, suite=r.suite)
        for r in registrations
    ]
    shares = partition(registrations, size)
    assert [[r.path for r in share] for share in shares] == [
        [r.filename for r in sglang_scanner.auto_partition(theirs, rank, size)]
        for rank in range(size)
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 7], ids="shares={}".format)
def test_shares_hold_each_file_once_and_are_balanced(size: int) -> None:
    rng = random.Random(size)
    registrations = [
        Registration(f"test_{i}.py", 1, "cpu", rng.uniform(1, 60), "s") for i in range(40)
    ]
    shares = partition(registrations, size)
    assert Counter(r.path for share in shares for r in share) == Counter(
        r.path for r in registrations
    )
    loads = [sum(r.est_time for r in share) for share in shares]
    assert max(loads) - min(loads) <= max(r.est_time for r in registrations)
    assert partition(rng.sample(registrations, len(registrations)), size) == shares


def test_no_shares() -> None:
    with pytest.raises(ValueError, match="size: found 0, expected at least 1"):
        partition([], 0)


if __name__ == "__main__":
    run_file(__file__)
