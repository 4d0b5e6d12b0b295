"""The second-order meta-step of MAML against commonly used libraries, in one run.

python -m experiments.benchmarks.maml --output=maml.json

Network, episodes and arithmetic, defined in `workloads`, are the same for all systems. Before
anything is timed, every system's meta-gradient is compared with ours in float64. With the extra
`bench`, a plain PyTorch loop (as in learn2learn), higher, TorchOpt and torch.func are timed too.
Each system runs in a separate process, as described in `experiments.benchmarks.measure`.

- `conv4`: 5-way 1-shot, 15 queries per class, 5 inner steps, 32 tasks, on one single-threaded CPU
  device per core. `metaguide-1-device` has one device with threads on all cores, and
  `metaguide-1-core` one device with one thread.
- `sinusoid`: 25 tasks, with the steps in one scan.
- `sampling`: drawing the 32 episodes of a step from 1,100 characters; no step includes this time.
- `tasks-8`, `tasks-64`, `steps-4`, `steps-32`: peak memory; the first two with one task per chunk,
  the last two with rematerialisation.

python -m experiments.benchmarks.maml --device=gpu --output=maml_gpu.json

runs all tasks of a step at once on one GPU, in TF32 unless a name says float32, against the PyTorch
loop, torch.func with and without torch.compile, and TorchOpt's transforms under torch.func. A peer
that fails there is left out with a message. Meta-gradients are compared on the GPU.

- `conv4`, `sinusoid`: as above.
- `tasks-32` to `tasks-2048`: number of tasks per step of `conv4`.
- `inner-5` to `inner-100`: inner steps of `conv4`, with each way to differentiate the inner loop.
"""

import functools
import importlib.util
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from absl import flags

from experiments.benchmarks.measure import (
    DEVICE,
    ONE_THREAD,
    OUTPUT,
    ROUNDS,
    SHARED_GPU,
    System,
    Workload,
    cores,
    environment,
    on_cpu_devices,
    report,
    start,
)
from experiments.benchmarks.workloads import OUTER_RATE, WORKLOADS, Inputs

COMPARE = flags.DEFINE_bool("compare", True, "compare all meta-gradients before timing")

FLOPS = 82_700_000_000
"""Operations in the matrix products of conv4's meta-step with 32 tasks, for all systems."""

STEPS_PER_CALL = 100
"""Steps of the sine waves per call of our program."""

TORCH = ("torch-loop", "higher", "torchopt", "torch.func")
GPU_TORCH = ("torch-loop", "torch.func", "torch.func-compiled", "torchopt.func")


def parts(workload: str, inputs: Inputs, steps: int | None = None, mode: str = "mixed"):
    """Return (meta-parameters, episodes, learner) of a workload, in metaguide's form."""
    import jax.numpy as jnp
    import optax

    from experiments.cells.config import mode_named
    from metaguide.learners import maml
    from metaguide.models.conv4 import Conv4
    from metaguide.models.mlp import MLP
    from metaguide.problems import classification_of_pictures, regression
    from metaguide.types import Episode

    setting = WORKLOADS[workload]
    if workload == "conv4":
        problem = classification_of_pictures(Conv4(dtype=None), way=5)
        names = ("image", "label")
    else:
        problem, names = regression(MLP((40, 40))), ("x", "y")

    def batch(part: str) -> dict[str, Any]:
        x, y = (jnp.asarray(inputs[f"{part}_{axis}"]) for axis in "xy")
        return {names[0]: x, names[1]: y, "mask": jnp.ones(y.shape[:2], bool)}

    meta = {"params": to_groups(workload, inputs["params"])}
    learner = maml(
        problem, optax.sgd(setting.learning_rate), steps or setting.steps, mode_named(mode)
    )
    return meta, Episode(batch("support"), batch("query")), learner


def to_groups(workload: str, flat: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return a workload's parameters as a tree of our model's groups."""
    head = {name: flat[f"{last_layer(flat)}/{name}"] for name in ("kernel", "bias")}
    if workload == "conv4":
        body = {
            f"layer{i}": {
                "convolution": {"taps": {"kernel": flat[f"conv{i}/kernel"]}},
                "norm": {name: flat[f"norm{i}/{name}"] for name in ("scale", "bias")},
            }
            for i in range(4)
        }
    else:
        body = {
            f"layer{i}": {name: flat[f"dense{i}/{name}"] for name in ("kernel", "bias")}
            for i in range(2)
        }
    return {"body": body, "head": head}


def to_flat(workload: str, groups: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return our model's groups as a flat dict keyed as in the workload; inverts `to_groups`."""
    body, flat = groups["body"], {}
    for name, layer in body.items():
        i = name.removeprefix("layer")
        if workload == "conv4":
            flat[f"conv{i}/kernel"] = layer["convolution"]["taps"]["kernel"]
            flat |= {f"norm{i}/{part}": value for part, value in layer["norm"].items()}
        else:
            flat |= {f"dense{i}/{part}": value for part, value in layer.items()}
    last = "head" if workload == "conv4" else f"dense{len(body)}"
    flat |= {f"{last}/{part}": value for part, value in groups["head"].items()}
    return {name: np.asarray(value) for name, value in flat.items()}


def last_layer(flat: dict[str, np.ndarray]) -> str:
    """Return the name of the linear head's layer."""
    return "head" if "head/kernel" in flat else "dense2"


def build_metaguide(
    workload: str,
    tasks: int | None = None,
    steps: int | None = None,
    mode: str = "mixed",
    steps_per_call: int = 1,
    chunk: int | None = None,
    precision: str = "default",
) -> Callable[[], Any]:
    """Return a function that runs `steps_per_call` of our meta-steps, on all devices.

    Args:
        workload: "conv4" or "sinusoid".
        tasks: episodes per step; by default the workload's number.
        steps: inner steps; by default the workload's number.
        mode: how the inner loop is differentiated, as in the config of a few-shot table.
        steps_per_call: steps per call.
        chunk: tasks that a device handles at once; all by default.
        precision: precision of float32 products.
    """
    import jax
    import optax

    from metaguide.objectives.weighting import fixed
    from metaguide.parallel import replicate, tasks_mesh
    from metaguide.training.episodic import on_episodes
    from metaguide.training.step import init_state, make_step

    jax.config.update("jax_default_matmul_precision", precision)
    setting = WORKLOADS[workload]
    inputs = setting.inputs(0, tasks) if tasks else setting.inputs(0)  # type: ignore[call-arg]
    tasks = len(inputs["support_x"])
    meta, episodes, learner = parts(workload, inputs, steps, mode)
    mesh = tasks_mesh()
    gradient = on_episodes(learner, meta_batch_size=tasks, tasks_per_chunk=chunk, mesh=mesh)
    weighting, optimizer = fixed({"episodes": 1.0}), optax.adam(OUTER_RATE)
    step = make_step(
        {"episodes": gradient},
        weighting,
        optimizer,
        steps_per_call,
        mesh=mesh,
        steps_per_call=steps_per_call,
    )
    state = replicate(init_state(meta, weighting, optimizer, jax.random.key(0)), mesh)
    carry, data = [state], replicate({"episodes": episodes}, mesh)

    def run() -> None:
        carry[0], metrics = step(carry[0], data)
        jax.block_until_ready((carry[0].params, metrics))

    return run


def build_sampling() -> Callable[[], Any]:
    """Return a function that draws the episodes of a step, as the step itself does."""
    import jax
    import jax.numpy as jnp

    from metaguide.data.episodes import balanced_sampler

    sample = balanced_sampler(5, 1, 15)
    table = {
        "image": jnp.asarray(np.random.default_rng(0).integers(0, 2, (1, 1100, 20, 28, 28)) * 255),
        "character": jnp.arange(1100, dtype=jnp.int32)[None],
        "turns": jnp.full((1, 1100), -1, jnp.int32),
    }
    table["image"] = table["image"].astype(jnp.uint8)
    draw = jax.jit(
        lambda table, key: jax.vmap(lambda key: sample(table, 0, 1, key))(jax.random.split(key, 32))
    )

    def run() -> None:
        jax.block_until_ready(draw(table, jax.random.key(0)))

    return run


def build_peer(
    peer: str, workload: str, device: str = "cpu", tf32: bool = True
) -> Callable[[], Any]:
    """Return a function that runs a meta-step of a PyTorch peer."""
    from experiments.benchmarks import peers

    return peers.build(peer, workload, device, tf32)


def our_gradient(workload: str, inputs: Inputs) -> dict[str, np.ndarray]:
    """Return our meta-gradient keyed as in the workload, in the dtype of the inputs."""
    import jax

    from metaguide.training.episodic import on_episodes

    meta, episodes, learner = parts(workload, inputs)
    gradient = on_episodes(learner, meta_batch_size=len(inputs["support_x"]))
    _, slope = jax.jit(gradient)(meta, episodes, jax.random.key(0), 0.0)
    return to_flat(workload, slope["params"])


def apart(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Return ‖a − b‖ / ‖b‖ over all parameters."""
    difference = sum(float(np.sum((a[name] - b[name]) ** 2)) for name in b)
    return (difference / sum(float(np.sum(b[name] ** 2)) for name in b)) ** 0.5


def check(peers: list[str], tasks: int = 4) -> dict[tuple[str, str], float]:
    """Compare the peers' meta-gradients of a few tasks with ours, in float64.

    Args:
        peers: names of the peers.
        tasks: number of tasks.

    Returns:
        The relative difference, keyed by workload and peer.

    Raises:
        AssertionError: one of them computes something else.
    """
    from experiments.benchmarks.peers import meta_gradient

    found = {}
    for workload, inputs, ours in in_our_float64(tasks):
        for peer in peers:
            found[workload, peer] = apart(meta_gradient(peer, workload, inputs), ours)
    return all_near(found)


def check_on_gpu(peers: list[str], tasks: int = 4) -> tuple[dict[tuple[str, str], float], set[str]]:
    """Compare meta-gradients computed on the GPU with ours on the CPU, in float64.

    Each is computed in a separate process, all at once.

    Args:
        peers: names of the peers to compare, in addition to ours.
        tasks: number of tasks.

    Returns:
        The relative difference, keyed by workload and system; and the peers that failed in every
        workload.

    Raises:
        AssertionError: one of them computes something else.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")  # in this process only
    found, ran = {}, set()
    expected = {workload: (inputs, ours) for workload, inputs, ours in in_our_float64(tasks)}
    jobs = [(workload, name) for workload in expected for name in ("metaguide", *peers)]
    context = multiprocessing.get_context("spawn")
    with environment(SHARED_GPU), ProcessPoolExecutor(len(jobs), context) as pool:
        futures = {
            job: pool.submit(gradient_on_gpu, job[1], job[0], expected[job[0]][0]) for job in jobs
        }
        for (workload, name), future in futures.items():
            try:
                gradient = future.result()
            except Exception as error:
                why = (str(error).strip().splitlines() or [type(error).__name__])[0]
                print(f"{workload}: {name} does not run here ({why[:200]})")
                continue
            ran.add(name)
            found[workload, name] = apart(gradient, expected[workload][1])
    return all_near(found), set(peers) - ran


def gradient_on_gpu(name: str, workload: str, inputs: Inputs) -> dict[str, np.ndarray]:
    """Return our or a peer's meta-gradient, computed in float64 on a GPU."""
    if name == "metaguide":
        import jax

        with jax.enable_x64(True):
            return our_gradient(workload, inputs)
    from experiments.benchmarks.peers import meta_gradient

    return meta_gradient(name, workload, inputs, "cuda")


def in_our_float64(tasks: int) -> Iterator[tuple[str, Inputs, dict[str, np.ndarray]]]:
    """Yield each workload, its inputs and our meta-gradient, in float64."""
    import jax

    for workload, setting in WORKLOADS.items():
        inputs = in_float64(setting.inputs(0, tasks))
        with jax.enable_x64(True):
            ours = our_gradient(workload, inputs)
        yield workload, inputs, ours


def all_near(found: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Return the distances between meta-gradients; raise an AssertionError if any is large."""
    wrong = {key: value for key, value in found.items() if not value < 1e-6}
    assert not wrong, f"meta-gradients that differ from ours: {wrong}"
    return found


def in_float64(tree: Any) -> Any:
    """Return a tree with float32 arrays cast to float64; other leaves are unchanged."""
    import jax

    def wide(leaf: Any) -> Any:
        return leaf.astype("float64") if getattr(leaf, "dtype", None) == np.float32 else leaf

    return jax.tree.map(wide, tree)


def workloads(peers: list[str]) -> list[Workload]:
    """Return all workloads, each with ours first, then the installed peers."""

    def against(workload: str) -> list[System]:
        return [System(peer, functools.partial(build_peer, peer, workload)) for peer in peers]

    ours = functools.partial(build_metaguide, "conv4", chunk=1)
    alone = {name: functools.partial(ours, tasks=count) for name, count in MEMORY_TASKS.items()}
    alone |= {
        name: functools.partial(ours, tasks=8, steps=count, mode="remat")
        for name, count in MEMORY_STEPS.items()
    }
    # Its kernels are too small to be split among threads.
    sinusoid = functools.partial(build_metaguide, "sinusoid", steps_per_call=STEPS_PER_CALL)
    ours_of_waves = System("metaguide", sinusoid, ONE_THREAD, STEPS_PER_CALL)
    return [
        Workload(
            "conv4",
            [
                System("metaguide", ours, on_cpu_devices(cores()) | ONE_THREAD),
                System("metaguide-1-device", ours),
                System("metaguide-1-core", ours, ONE_THREAD),
                *against("conv4"),
            ],
            FLOPS,
        ),
        Workload("sinusoid", [ours_of_waves, *against("sinusoid")]),
        Workload("sampling", [System("metaguide", build_sampling)]),
        *(Workload(name, [System("metaguide", build)]) for name, build in alone.items()),
    ]


def on_gpu(peers: list[str]) -> list[Workload]:
    """Return the workloads for a GPU, each with ours first, then the peers that run there."""
    conv4, waves = (functools.partial(build_metaguide, name) for name in WORKLOADS)
    in_tf32, in_float32 = (
        {peer: functools.partial(build_peer, peer, device="cuda", tf32=tf32) for peer in peers}
        for tf32 in (True, False)
    )
    pictures = [
        System("metaguide", conv4),
        System("metaguide-float32", functools.partial(conv4, precision="float32")),
        *(System(peer, functools.partial(build, "conv4")) for peer, build in in_tf32.items()),
        *(
            System(f"{peer}-float32", functools.partial(build, "conv4"))
            for peer, build in in_float32.items()
            if peer == "torch.func"
        ),
    ]
    in_calls = System(
        "metaguide", functools.partial(waves, steps_per_call=STEPS_PER_CALL), {}, STEPS_PER_CALL
    )
    return [
        Workload("conv4", pictures, FLOPS),
        Workload(
            "sinusoid",
            [in_calls, *(System(p, functools.partial(b, "sinusoid")) for p, b in in_tf32.items())],
        ),
        *(
            Workload(
                f"tasks-{count}",
                [
                    System(name, functools.partial(conv4, tasks=count, precision=precision))
                    for name, precision in PRECISIONS.items()
                ],
                FLOPS * count // 32,
            )
            for count in GPU_TASKS
        ),
        *(
            Workload(
                f"inner-{count}",
                [System(m, functools.partial(conv4, steps=count, mode=m)) for m in MODES],
            )
            for count in GPU_STEPS
        ),
    ]


MEMORY_TASKS = {"tasks-8": 8, "tasks-64": 64}
MEMORY_STEPS = {"steps-4": 4, "steps-32": 32}
GPU_TASKS = (32, 128, 512, 2048)
GPU_STEPS = (5, 20, 100)
MODES = ("mixed", "unrolled", "remat")
PRECISIONS = {"metaguide": "default", "metaguide-float32": "float32"}


def main() -> None:
    """Check, measure, print the tables and write the rows."""
    gpu = DEVICE.value == "gpu"
    wanted = GPU_TORCH if gpu else TORCH
    package = {"torchopt": "torchopt", "torchopt.func": "torchopt", "higher": "higher"}
    peers = [peer for peer in wanted if importlib.util.find_spec(package.get(peer, "torch"))]
    if len(peers) < len(wanted):
        print(f"not installed: {', '.join(set(wanted) - set(peers))}; pip install -e '.[bench]'")
    if COMPARE.value and gpu:
        found, broken = check_on_gpu(peers)
        peers = [peer for peer in peers if peer not in broken]
    else:
        found = check(peers) if COMPARE.value and peers else {}
    for (workload, name), value in found.items():
        print(f"{workload}: the meta-gradient of {name} agrees with ours up to {value:.1e}")
    report(on_gpu(peers) if gpu else workloads(peers), ROUNDS.value, OUTPUT.value)


if __name__ == "__main__":
    flags.set_default(ROUNDS, 10)
    start(main)
