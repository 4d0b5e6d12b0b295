import functools
import io
import json
import multiprocessing
import os

import pytest
from rich.console import Console

from experiments.benchmarks import measure
from experiments.benchmarks.measure import PRODUCT, PRODUCTS, SIDE, System, Timing, Workload


def system(name, code, **environment):
    """A system whose builder evaluates code: a child need not import this file."""
    return System(name, functools.partial(eval, code), environment)


@pytest.mark.slow
def test_systems_are_timed_and_their_processes_ended():
    """Catches times of one system given to another, and processes that outlive the measuring."""
    sleep = "lambda: __import__('time').sleep({})"
    systems = [system("short", sleep.format(0.01)), system("long", sleep.format(0.05))]
    found = measure.measure(systems, rounds=2)
    assert list(found) == ["short", "long"]
    assert 0.01 <= found["short"].best < 0.05 <= found["long"].best
    assert found["short"].first >= 0.01 and found["long"].first >= 0.05
    assert all(own.peak > 1 for own in found.values())
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("1 / 0", 1),
        ("lambda: __import__('os')._exit(3)", 3),
        ("(lambda calls: lambda: calls.pop())([1])", 1),  # survives its first call only
    ],
)
@pytest.mark.slow
def test_a_system_that_dies_is_named(code, exit_code):
    """Catches a wait for an answer that never comes, and other systems left running."""
    systems = [system("well", "lambda: None"), system("ill", code)]
    with pytest.raises(measure.SystemDied, match=f"^ill: .* exit code {exit_code} "):
        measure.measure(systems, rounds=2)
    assert not multiprocessing.active_children()


def test_variables_are_there_when_the_process_starts(tmp_path, monkeypatch):
    """Catches variables set after the interpreter, or its libraries, have read them."""
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    path = tmp_path / "found.json"
    names = ("GLIBC_TUNABLES", "JAX_ENABLE_COMPILATION_CACHE")
    code = (
        f"lambda: __import__('pathlib').Path({str(path)!r}).write_text(__import__('json').dumps("
        f"[__import__('sys').flags.hash_randomization, *map(__import__('os').getenv, {names})]))"
    )
    before = dict(os.environ)
    measure.measure([system("own", code, PYTHONHASHSEED="0")], rounds=1)
    seeded, tunables, cache = json.loads(path.read_text())
    assert seeded == 0  # the system's own variable
    assert tunables == measure.ENVIRONMENT["GLIBC_TUNABLES"]  # the default
    assert cache == "true"  # the user's, which is not overwritten
    assert dict(os.environ) == before


def test_rows_without_a_count_have_no_share():
    """Catches a workload without a count of operations that gets a share of zero, or fails."""
    build = system("any", "lambda: None").build
    found = {
        PRODUCT.name: Timing(1.0, PRODUCTS * 0.01, 50.0),
        "ours": Timing(3.0, 0.5, 100.0),
        "theirs": Timing(1.0, 0.25, 200.0),
    }
    systems = [System("ours", build), System("theirs", build)]
    ours, theirs = measure.rows(Workload("w", systems), found)
    assert (ours["limit_share"], theirs["limit_share"]) == (None, None)
    assert (ours["ratio"], theirs["ratio"]) == (1, 0.5)
    assert list(ours) == [
        "workload",
        "system",
        "steps_per_s",
        "ratio",
        "limit_share",
        "compile_s",
        "peak_mib",
    ]
    counted = measure.rows(Workload("w", systems, flops=2 * SIDE**3), found)
    assert counted[0]["limit_share"] == pytest.approx(0.02)
    text = io.StringIO()
    Console(file=text, width=100).print(measure.tabulate("title", [ours, counted[1]]))
    assert "theirs" in text.getvalue() and "None" not in text.getvalue()


def test_a_gpu_has_two_limits_of_its_own():
    """Catches a share of a CPU's product, or of TF32 where float32 is meant."""
    assert [one.name for one in measure.limits("gpu")] == [PRODUCT.name, measure.TF32]
    assert measure.limits("cpu") == [PRODUCT]
    work = PRODUCTS * 2 * measure.GPU_SIDE**3
    found = {
        PRODUCT.name: Timing(1.0, 2.0, 50.0),
        measure.TF32: Timing(1.0, 0.5, 50.0),
        "ours": Timing(3.0, 4.0, 100.0),
    }
    (row,) = measure.rows(Workload("w", [system("ours", "None")], flops=work), found, "gpu")
    assert (row["limit_share"], row["tf32_share"]) == (0.5, 0.125)
