import threading
import time
from mmap import PAGESIZE, PROT_READ, PROT_WRITE, mmap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaguide.training.program import (
    SIZES,
    Once,
    Program,
    compilations,
    compile_all,
    has_room,
    in_background,
    in_pieces,
)


def counted(traces):
    def function(x):
        traces.append(threading.current_thread().name)
        time.sleep(0.05)  # long enough for another thread to come in between
        return 2 * x

    return function


@pytest.mark.usefixtures("room_for_programs")
def test_threads_that_call_at_once_share_one_compilation():
    """Fault: every thread that comes before the first is done traces and compiles for itself."""
    traces, found = [], []
    program = Program(counted(traces))
    threads = [
        threading.Thread(target=lambda i=i: found.append(float(program(jnp.float32(i)))))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 2, 4, 6]
    assert (len(traces), program.compilations()) == (1, 1)


def test_once_is_once_and_whoever_asks_later_waits():
    """Faults: two threads run the action, one goes on before it is done, or one that failed
    counts as done."""
    runs, seen, once = [], [], Once()

    def fails():
        raise KeyError

    def action():
        time.sleep(0.05)  # long enough for the other threads to ask
        runs.append(1)

    def ask():
        once(action)
        seen.append(len(runs))

    with pytest.raises(KeyError):
        once(fails)
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(runs), seen) == (1, [1, 1, 1, 1])


@pytest.mark.usefixtures("room_for_programs")
def test_what_was_compiled_ahead_is_what_is_called():
    """Faults: a call compiles again, compiling ahead takes a donated argument away, or an error of
    one function is lost in its thread."""
    logged, traces = [], []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: logged.append(name))
    kept, donating = (jax.jit(counted(traces), donate_argnums=numbers) for numbers in ((), (0,)))
    x = jnp.arange(5.0)
    compile_all([(kept, (x,)), (donating, (x,))])
    assert not x.is_deleted()
    before = [name for name in logged if "backend_compile" in name]
    assert np.asarray(kept(x))[4] == np.asarray(donating(x))[4] == 8
    assert [name for name in logged if "backend_compile" in name] == before
    assert x.is_deleted() and len(traces) == 2
    assert compilations(kept) == compilations(donating) == 1

    class Uncompilable:
        def lower(self):
            return self

        def compile(self):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        compile_all([(Uncompilable(), ()), (kept, (x,))])


def test_jobs_run_in_order_beside_the_body_and_end_with_it():
    """Faults: a job blocks the body, a failing job ends those after it, or the jobs that are left
    run on after the body has failed."""
    done, first, go = [], threading.Event(), threading.Event()

    def fails():
        done.append("fails")
        raise ValueError("left to the body")

    def waits():
        done.append("waits")
        first.set()
        go.wait(5)

    with pytest.raises(KeyError), in_background([fails, waits, lambda: done.append("dropped")]):
        assert first.wait(5)
        raise KeyError
    go.set()
    time.sleep(0.05)
    assert done == ["fails", "waits"]


@pytest.mark.skipif(not Path("/proc/sys/vm/max_map_count").exists(), reason="Linux alone counts")
def test_nothing_is_compiled_ahead_where_a_process_has_few_maps_left():
    """Fault: compiling ahead takes the last maps of a process, and LLVM ends it."""
    held, done = [], []
    while has_room():  # neighbours of two kinds, which do not become one map
        held += [mmap(-1, PAGESIZE, prot=PROT_READ | PROT_WRITE * (i % 2)) for i in range(12_000)]
    with in_background([lambda: done.append("a job")]):
        time.sleep(0.2)
    for one in held:
        one.close()
    assert has_room() and not done
    with in_background([lambda: done.append("a job")]):
        time.sleep(0.2)
    assert done


DOUBLED = jax.jit(lambda rows: {"two": 2 * rows["a"], "sum": rows["b"].sum(-1)})


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 600), st.sampled_from((1, 3, 64, SIZES[-1])))
def test_pieces_are_the_whole(count, most):
    """Faults: a row is lost, doubled or moved where pieces meet; padding is returned."""
    rows = {"a": np.arange(count, dtype=np.int32), "b": np.ones((count, 2), np.float32)}
    rows["b"][:, 0] = rows["a"]
    found = in_pieces(DOUBLED, rows, most)
    np.testing.assert_array_equal(found["two"], 2 * rows["a"])
    np.testing.assert_array_equal(found["sum"], rows["a"] + 1)


@pytest.mark.usefixtures("room_for_programs")
def test_any_number_of_rows_compiles_few_programs():
    """Fault: every new number of rows compiles anew."""
    function = jax.jit(lambda rows: {"x": rows + 1})
    for count in range(1, 700, 7):
        in_pieces(function, np.zeros(count, np.float32))
    assert compilations(function) == len(SIZES)
