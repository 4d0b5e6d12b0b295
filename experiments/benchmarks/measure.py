"""How benchmarks measure: every system in a process of its own, in turn, the best counts.

A workload is given to several systems and each is built in a process of its own. Bursts of steps
are measured in turn, round by round, and the best of each counts, so that other load on the machine
meets all of them alike. The rate of 1024 x 1024 x 1024 float32 products, measured in the same
rounds, is the limit: a share of it is (floating-point operations of the workload) / (time of a
step) / (that rate).

With `--device=gpu` the products are 8192 x 8192 x 8192, in float32 and in TF32, a share for each;
the systems of a workload are built at the same time, so that the seconds of the first call are of
a busy machine; and memory is that which arrays took on the device.

On Linux all of them run with transparent huge pages for large arrays, unless the user or a system
sets the variable otherwise: of the masked language model's 62,000 page faults a step 1,200 are
left, and a step takes a fifth less processor time.
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

OUTPUT = flags.DEFINE_string("output", None, "file to write the rows to, JSON")
ROUNDS = flags.DEFINE_integer("rounds", 25, "how often every system is measured", lower_bound=1)

DEVICE = flags.DEFINE_enum("device", "cpu", ("cpu", "gpu"), "where everything is measured")

ONLY = flags.DEFINE_list("only", [], "names of workloads; all of them by default")
SYSTEMS = flags.DEFINE_list("systems", [], "names of systems beside ours; all of them by default")

SIDE, PRODUCTS = 1024, 20
"""Rows and columns of the matrices whose product is the limit, and how many are timed at once."""

GPU_SIDE = 8192
"""The same on a GPU."""

BURST = 0.1
"""Seconds that a system runs at least in each round, so that a short step is met warm too."""

ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # read by glibc alone and when a process starts
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # the first call is to be a compilation
}
"""Variables of every system's process that the user has not set."""


SHARED_GPU = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
"""The same on a GPU, whose memory all of them share."""

ONE_THREAD = {"NPROC": "1"}
"""Of XLA's pool, which otherwise shares out small products among all cores."""


def on_cpu_devices(count: int) -> dict[str, str]:
    """Return the environment of a process with so many CPU devices."""
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}


class System(NamedTuple):
    """What is measured.

    Attributes:
        name: as it stands in the rows.
        build: a picklable function, so one of a module's top level or a partial of one. Called in
            the system's own process, it returns the function that takes a step and waits for it.
        environment: variables of that process, there before anything is imported.
        steps: how many steps a call of that function takes.
    """

    name: str
    build: Callable[[], Callable[[], Any]]
    environment: Mapping[str, str] = {}
    steps: int = 1


class Workload(NamedTuple):
    """What a step does: its name, its systems, ours first, and its matrix products' operations."""

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
    """Return how many cores this process may use, which `taskset` can make fewer than there are."""
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
    """Return what measures the limits of a device."""
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
    """Return the best time of at least two calls, of more where two take less than `BURST`."""
    start = time.perf_counter()
    best = min(seconds(run), seconds(run))
    while time.perf_counter() - start < BURST:
        best = min(best, seconds(run))
    return best


def device_peak_mib() -> float:
    """Return the most memory of a GPU that arrays of this process took, MiB."""
    peaks = []
    if "torch" in sys.modules:
        peaks.append(sys.modules["torch"].cuda.max_memory_allocated())
    if "jax" in sys.modules:
        statistics = sys.modules["jax"].local_devices()[0].memory_stats() or {}
        peaks.append(statistics.get("peak_bytes_in_use", 0))
    return max(peaks, default=0) / 2**20


def serve(build: Callable[[], Callable[[], Any]], device: str, pipe: Connection) -> None:
    """Build a system, then answer every True with the best time of a burst, False with the peak."""
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
        theirs.close()  # so that a process that dies ends our wait

    def answer(self, request: bool | None = None) -> float:
        """Return what the process answers to a request, or says of its own accord when built."""
        try:
            if request is not None:
                self.pipe.send(request)
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            raise SystemDied(
                f"{self.name}: its process ended with exit code {self.process.exitcode} before it "
                "was measured; what it printed last says why (-9: killed, most often for memory)"
            ) from None

    def end(self) -> None:
        """End the process and wait until it has ended."""
        self.process.terminate()
        self.process.join()


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process for a while: those that it starts meanwhile keep them."""
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
    """Return the timing of each system by its name.

    Args:
        systems: with names that differ. All of their processes live until the last is measured.
        rounds: how often each is measured, in turn.
        device: "cpu", or "gpu", where all are built at once.

    Raises:
        SystemDied: a process ended; the others are ended too.
    """
    with contextlib.ExitStack() as stack:
        children, first = [], []
        for system in systems:  # one after the other: their first calls are timed as well
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
    """Return one row a system, in the workload's order.

    Args:
        workload: what was measured.
        found: the timings of its systems and of the products.
        device: "cpu" or "gpu".

    Returns:
        `workload`, `system`, `steps_per_s`, `ratio` (how many times as fast the first system is as
        this one), `limit_share` (None without a count of operations), on a GPU `tf32_share`,
        `compile_s` (first call less another one), `peak_mib`.
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
        title: above the table.
        result: what `rows` returned.
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
    """Measure workloads, print a table of each, write all the rows.

    Args:
        workloads: measured one after the other, the product with each, where `ONLY` names them.
        rounds: how often every system is measured.
        output: file for the rows, or None.
        counted: rows of what needs no timing, printed as they are and written with the others.
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
        work = f"{workload.flops / 1e9:.3g} GFLOP a step, " if workload.flops else ""
        rate = f"limit {limit(found, device) / 1e9:.0f} GFLOP/s"
        of_workload = rows(workload, found, device)
        Console().print(
            tabulate(f"{workload.name}: {work}{rate}, best of {rounds} rounds", of_workload)
        )
        result += of_workload
    if output:
        write_json(Path(output), result)


def start(main: Callable[[], None]) -> None:
    """Start a benchmark from the command line, which takes flags only.

    Args:
        main: the benchmark; it finds `OUTPUT` and `ROUNDS` parsed.
    """

    def checked(argv: list[str]) -> None:
        if argv[1:]:
            raise app.UsageError(f"unexpected argument {argv[1]!r}")
        logging.set_verbosity(logging.WARNING)  # JAX tells which accelerators are not there
        main()

    app.run(checked)
