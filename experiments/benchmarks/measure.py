"""Measurement for benchmarks: every system in its own process, in turn, keeping the best time.

Each system of a workload is built in a separate process. Bursts of steps are measured in turn,
round by round, and the best time of each system counts, so that other load on the machine affects
all of them alike. The rate of 1024 x 1024 x 1024 float32 products, measured in the same rounds, is
the limit. A share of it is (floating-point operations of the workload) / (time of a step) / (that
rate).

With `--device=gpu` the products are 8192 x 8192 x 8192, in float32 and in TF32, with a share for
each. The systems of a workload are built at the same time, so the first call is timed on a busy
machine. Memory is what arrays took on the device.

On Linux all systems run with transparent huge pages for large arrays, unless the user or a system
sets the variable differently. This reduces the masked language model's page faults from 62,000 to
1,200 per step, and the processor time of a step by a fifth.
"""

import contextlib
import functools
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags, logging
from rich.console import Console
from rich.table import Table

from metaguide.files import write_json

OUTPUT = flags.DEFINE_string("output", None, "JSON file to write the rows to")
ROUNDS = flags.DEFINE_integer("rounds", 25, "how often every system is measured", lower_bound=1)

DEVICE = flags.DEFINE_enum("device", "cpu", ("cpu", "gpu"), "where everything is measured")

ONLY = flags.DEFINE_list("only", [], "names of workloads; all by default")
SYSTEMS = flags.DEFINE_list("systems", [], "names of systems to compare with ours; all by default")

SIDE, PRODUCTS = 1024, 20
"""Side of the matrices whose product is the limit, and number of products timed at once."""

GPU_SIDE = 8192
"""Side of the matrices on a GPU."""

BURST = 0.1
"""Minimum seconds that a system runs in each round, so that short steps are measured warm too."""

ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # read only by glibc, when a process starts
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # the first call must compile
}
"""Environment variables of every system's process, unless the user sets them."""


SHARED_GPU = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
"""Further variables on a GPU, whose memory all systems share."""

ONE_THREAD = {"NPROC": "1"}
"""Size of XLA's thread pool, which otherwise splits small products among all cores."""


def on_cpu_devices(count: int) -> dict[str, str]:
    """Return the environment of a process with this many CPU devices."""
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}


class System(NamedTuple):
    """A system to measure.

    Attributes:
        name: its name in the rows.
        build: a picklable function, that is, a module's top-level function or a partial of one.
            Called in the system's own process, it returns a function that runs a step and waits
            for it.
        environment: environment variables of that process, set before anything is imported.
        steps: number of steps that a call of that function runs.
    """

    name: str
    build: Callable[[], Callable[[], Any]]
    environment: Mapping[str, str] = {}
    steps: int = 1


class Workload(NamedTuple):
    """A workload: its name, its systems with ours first, and operations of its matrix products."""

    name: str
    systems: Sequence[System]
    flops: int | None = None


class Timing(NamedTuple):
    """Seconds of the first call and of the best one, and the largest resident memory, MiB."""

    first: float
    best: float
    peak: float


class SystemDied(RuntimeError):
    """A system's process ended before it was measured."""


def cores() -> int:
    """Return the number of cores this process may use, which `taskset` can restrict."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_mib() -> float:
    """Return this process's largest resident memory, MiB."""
    try:  # the kernel lets a child inherit `ru_maxrss` from its parent, but not this
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    except (OSError, IndexError):
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def build_product(side: int = SIDE, precision: str = "float32") -> Callable[[], Any]:
    """Return a function that multiplies matrices in JAX, `PRODUCTS` times."""
    import jax
    import jax.numpy as jnp

    matrix = jax.random.normal(jax.random.key(0), (side, side))
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision=precision))

    def run() -> None:
        for _ in range(PRODUCTS):
            jax.block_until_ready(multiply(matrix))

    return run


PRODUCT = System("product", build_product)
TF32 = "product-tf32"


def limits(device: str) -> list[System]:
    """Return the systems that measure the limits of a device."""
    if device == "cpu":
        return [PRODUCT]
    return [
        System(PRODUCT.name, functools.partial(build_product, GPU_SIDE)),
        System(TF32, functools.partial(build_product, GPU_SIDE, "tensorfloat32")),
    ]


def seconds(run: Callable[[], Any]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def best_of_burst(run: Callable[[], Any]) -> float:
    """Return the best time of at least two calls, or more if two take less than `BURST`."""
    start = time.perf_counter()
    best = min(seconds(run), seconds(run))
    while time.perf_counter() - start < BURST:
        best = min(best, seconds(run))
    return best


def device_peak_mib() -> float:
    """Return the peak GPU memory of this process's arrays, MiB."""
    peaks = []
    if "torch" in sys.modules:
        peaks.append(sys.modules["torch"].cuda.max_memory_allocated())
    if "jax" in sys.modules:
        statistics = sys.modules["jax"].local_devices()[0].memory_stats() or {}
        peaks.append(statistics.get("peak_bytes_in_use", 0))
    return max(peaks, default=0) / 2**20


def serve(build: Callable[[], Callable[[], Any]], device: str, pipe: Connection) -> None:
    """Build a system, then answer True with the best time of a burst and False with peak memory."""
    run = build()
    pipe.send(seconds(run))
    while pipe.recv():
        pipe.send(best_of_burst(run))
    pipe.send(peak_mib() if device == "cpu" else device_peak_mib())


class Child:
    """A system's process and our end of its pipe."""

    def __init__(self, system: System, device: str = "cpu"):
        context = multiprocessing.get_context("spawn")
        self.name = system.name
        self.pipe, theirs = context.Pipe()
        given = (system.build, device, theirs)
        self.process = context.Process(target=serve, args=given, daemon=True)
        own = ENVIRONMENT if device == "cpu" else ENVIRONMENT | SHARED_GPU
        defaults = {name: os.environ.get(name, value) for name, value in own.items()}
        with environment({**defaults, **system.environment}):
            self.process.start()
        theirs.close()  # so that our wait ends if the process dies

    def answer(self, request: bool | None = None) -> float:
        """Return the process's answer to a request, or what it sends unprompted when built."""
        try:
            if request is not None:
                self.pipe.send(request)
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            raise SystemDied(
                f"{self.name}: its process ended with exit code {self.process.exitcode} before it "
                "was measured; its last output says why (-9: killed, usually for lack of memory)"
            ) from None

    def end(self) -> None:
        """End the process and wait until it has ended."""
        self.process.terminate()
        self.process.join()


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables temporarily, for the processes started within the context."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def measure(systems: Sequence[System], rounds: int, device: str = "cpu") -> dict[str, Timing]:
    """Return the timing of each system, keyed by name.

    Args:
        systems: systems with distinct names. Their processes live until all are measured.
        rounds: how often each is measured, in turn.
        device: "cpu" or "gpu"; on a GPU all are built at once.

    Raises:
        SystemDied: a process ended; the others are stopped too.
    """
    with contextlib.ExitStack() as stack:
        children, first = [], []
        for system in systems:  # one after the other, since their first calls are timed too
            child = Child(system, device)
            stack.callback(child.end)
            children.append(child)
            if device == "cpu":
                first.append(child.answer())
        if device != "cpu":
            first = [child.answer() for child in children]
        bursts = [[child.answer(True) for child in children] for _ in range(rounds)]
        best = [min(times) for times in zip(*bursts, strict=True)]
        peaks = [child.answer(False) for child in children]
    names = [system.name for system in systems]
    return dict(zip(names, map(Timing, first, best, peaks), strict=True))


def limit(found: Mapping[str, Timing], device: str = "cpu", product: str = PRODUCT.name) -> float:
    """Return the machine's floating-point operations per second in matrix products."""
    side = SIDE if device == "cpu" else GPU_SIDE
    return PRODUCTS * 2 * side**3 / found[product].best


def rows(
    workload: Workload, found: Mapping[str, Timing], device: str = "cpu"
) -> list[dict[str, Any]]:
    """Return one row per system, in the workload's order.

    Args:
        workload: what was measured.
        found: the timings of its systems and of the products.
        device: "cpu" or "gpu".

    Returns:
        `workload`, `system`, `steps_per_s`, `ratio` (speed of the first system relative to this
        one), `limit_share` (None without a count of operations), `tf32_share` (on a GPU only),
        `compile_s` (first call minus a later one) and `peak_mib`.
    """
    step = {system.name: found[system.name].best / system.steps for system in workload.systems}
    ours, result = step[workload.systems[0].name], []
    for system in workload.systems:
        timing, best = found[system.name], step[system.name]
        done = workload.flops and workload.flops / best
        shares = {"limit_share": done and done / limit(found, device)}
        if device != "cpu":
            shares["tf32_share"] = done and done / limit(found, device, TF32)
        result.append(
            {
                "workload": workload.name,
                "system": system.name,
                "steps_per_s": 1 / best,
                "ratio": best / ours,
                **shares,
                "compile_s": timing.first - timing.best,
                "peak_mib": timing.peak,
            }
        )
    return result


def tabulate(title: str, result: Sequence[Mapping[str, Any]]) -> Table:
    """Return a workload's rows as a table to print, without the workload's column.

    Args:
        title: title above the table.
        result: the return value of `rows`.
    """
    table = Table(title=title)
    shown = [name for name in result[0] if name != "workload"]
    for name in shown:
        table.add_column(name, justify="left" if name == "system" else "right")
    for row in result:
        values = [row[name] for name in shown]
        table.add_row(
            *(f"{v:.{0 if v > 99 else 2}f}" if isinstance(v, float) else v for v in values)
        )
    return table


def report(
    workloads: Sequence[Workload],
    rounds: int,
    output: str | None,
    counted: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Measure workloads, print a table of each, and write all rows.

    Args:
        workloads: workloads to measure one after the other, each with the matrix product; `ONLY`
            can select some of them.
        rounds: how often every system is measured.
        output: file for the rows, or None.
        counted: rows that need no timing, printed unchanged and written with the others.
    """
    result = []
    for name in dict.fromkeys(row["workload"] for row in counted):
        of_workload = [row for row in counted if row["workload"] == name]
        Console().print(tabulate(name, of_workload))
        result += of_workload
    for workload in workloads:
        if ONLY.value and workload.name not in ONLY.value:
            continue
        device = DEVICE.value
        ours, *others = workload.systems
        kept = [one for one in others if not SYSTEMS.value or one.name in SYSTEMS.value]
        workload = workload._replace(systems=[ours, *kept])
        found = measure([*limits(device), *workload.systems], rounds, device)
        work = f"{workload.flops / 1e9:.3g} GFLOP per step, " if workload.flops else ""
        rate = f"limit {limit(found, device) / 1e9:.0f} GFLOP/s"
        of_workload = rows(workload, found, device)
        Console().print(
            tabulate(f"{workload.name}: {work}{rate}, best of {rounds} rounds", of_workload)
        )
        result += of_workload
    if output:
        write_json(Path(output), result)


def start(main: Callable[[], None]) -> None:
    """Start a benchmark from the command line, which accepts only flags.

    Args:
        main: the benchmark; called after `OUTPUT` and `ROUNDS` are parsed.
    """

    def checked(argv: list[str]) -> None:
        if argv[1:]:
            raise app.UsageError(f"unexpected argument {argv[1]!r}")
        logging.set_verbosity(logging.WARNING)  # JAX logs which accelerators are missing
        main()

    app.run(checked)
