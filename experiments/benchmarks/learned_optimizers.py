"""Learned optimizers against PyTorch, hand-written code and Adam, in one run.

python -m experiments.benchmarks.learned_optimizers --output=learned_optimizers.json

Each system runs in a separate process, as described in `experiments.benchmarks.measure`. Before
anything is timed, results that must be equal are compared in float64. With the extra `bench`,
PyTorch is timed too.

- `quadratics`: a meta-training step of the LSTM rule on 128 quadratics of 10 coordinates, with a
  window of 20 steps, first order. Ours has one CPU device per core, or one device and one thread,
  like the peers; `torch-batched-all-cores` has threads on all cores.
- `update-lstm`: an update of a million parameters, against the same rule written for a flat array.
- `update-mlp`: the same with the perceptron and the HyperNetwork rule, against `optax.adam`.
- `memory`: memory of the compiled programs, as counted by XLA rather than by the process: an update
  relative to its state, and a window of 200 steps with rematerialisation relative to one of 20.
  Nothing is run.

With `--device=gpu`: `quadratics` against PyTorch on one GPU, and `updates` of a million parameters.
The comparison in float64 runs on the CPU.
"""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments.benchmarks.maml import COMPARE, apart, in_float64
from experiments.benchmarks.measure import (
    DEVICE,
    ONE_THREAD,
    ONLY,
    OUTPUT,
    ROUNDS,
    System,
    Workload,
    cores,
    on_cpu_devices,
    report,
    start,
)
from experiments.benchmarks.workloads import OUTER_RATE, Inputs

PROBLEMS, WINDOW, HORIZON = 128, 20, 100
"""Quadratics per step, inner steps per window, and inner steps until a problem is replaced."""

STEPS_PER_CALL = 10
"""Meta-steps per call of our program."""

P, SCALE = 10.0, 0.1
"""Settings of the LSTM rule; see `metaguide.optimizers.lstm`."""

SHAPES = {
    "embedding": (2000, 200),
    "layer0": {"kernel": (200, 1000), "bias": (1000,)},
    "layer1": {"kernel": (1000, 200), "bias": (200,)},
    "head": (200, 994),
}
"""Shapes of the tensors that are updated, a million parameters in total."""

CHUNK = 4000
"""Coordinates that the hand-written rule updates at once, so that gates stay in a core's cache."""

TORCH = ("torch-loop", "torch-batched")


def estimator(truncation: int = WINDOW, remat: bool = False):
    """Return (rule, estimator) for the LSTM rule on quadratics."""
    from metaguide.optimizers import lstm, truncated
    from metaguide.problems.optimizees import quadratics

    rule = lstm(p=P, scale=SCALE)
    horizon = max(HORIZON, truncation)
    return rule, truncated(rule, quadratics(), horizon, truncation, remat=remat)


def begun(problems: int, mesh=None, truncation: int = WINDOW, remat: bool = False):
    """Return (meta-parameters, carrying gradient, initial carry) for this many quadratics."""
    import jax

    from metaguide.training.particles import particles

    rule, one = estimator(truncation, remat)
    many = particles(one, problems, mesh)
    meta = {"rule": jax.jit(rule.init)(jax.random.key(0))}
    begin = jax.jit(lambda meta, key: many.start(meta, (), key))
    return meta, many, begin(meta, jax.random.key(1))


def inputs_of(meta: Any, carry: Any) -> Inputs:
    """Return the inputs of our first step as NumPy arrays, for the peers."""
    import jax

    theta = meta["rule"]
    flat = {"output": theta["output"]}
    for name in theta.keys() - {"output"}:
        flat |= {f"{name}/{part}": value for part, value in theta[name].items()}
    (loop,) = carry.loops
    arrays = {
        "w": carry.task["w"],
        "y": carry.task["y"],
        "start": loop.params["theta"],
    }
    numbers = {"steps": WINDOW, "p": P, "scale": SCALE}
    return jax.tree.map(np.asarray, {"theta": flat, **arrays}) | numbers


def build_quadratics() -> Callable[[], Any]:
    """Return a function that runs `STEPS_PER_CALL` of our meta-steps, on all devices."""
    import jax
    import optax

    from metaguide.objectives.weighting import fixed
    from metaguide.parallel import replicate, tasks_mesh
    from metaguide.training.step import init_state, make_step

    mesh = tasks_mesh()
    meta, many, first = begun(PROBLEMS, mesh)
    weighting, optimizer = fixed({"quadratics": 1.0}), optax.adam(OUTER_RATE)
    gradients = {"quadratics": many}
    step = make_step(
        gradients,
        weighting,
        optimizer,
        STEPS_PER_CALL * 10_000,
        mesh=mesh,
        steps_per_call=STEPS_PER_CALL,
    )
    state = init_state(meta, weighting, optimizer, jax.random.key(2), {"quadratics": first})
    carry = [replicate(state, mesh)]

    def run() -> None:
        carry[0], metrics = step(carry[0], {"quadratics": ()})
        jax.block_until_ready((carry[0].params, metrics))

    return run


def build_peer(peer: str, threads: int, device: str = "cpu") -> Callable[[], Any]:
    """Return a function that runs a meta-step of a PyTorch peer with this many threads.

    Its arrays are small: with other load on the machine, many threads are many times slower than
    one.
    """
    from experiments.benchmarks import learned_optimizer_peers as peers

    meta, _, first = begun(PROBLEMS)
    return peers.build(peer, inputs_of(meta, first), threads, device)


def gradients_of_model() -> Any:
    """Return gradients of a million parameters, some too small for the rule's logarithm."""
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape) ** 9, jnp.float32),
        SHAPES,
        is_leaf=lambda shape: isinstance(shape, tuple),
    )


def transform(system: str):
    """Return the optax transform of a system: "lstm", "mlp", "hyper" or "adam"."""
    import jax
    import optax

    from metaguide.optimizers import hyper, lstm, mlp

    if system == "adam":
        return optax.with_extra_args_support(optax.adam(1e-3))
    rule = {"lstm": lstm(p=P, scale=SCALE), "mlp": mlp(hidden=8), "hyper": hyper()}[system]
    return rule.transform(rule.init(jax.random.key(0)))


def update_program(system: str):
    """Return (compiled update, gradients, state) for a million parameters.

    The program is (state, gradients) -> (state, updates) with the state donated. For rules that
    read parameters, the gradients serve as those too.
    """
    import jax
    import jax.numpy as jnp

    gradients, optimizer = gradients_of_model(), transform(system)

    def update(state: Any, gradients: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradients, state, gradients, value=jnp.float32(1))
        return state, updates

    state = optimizer.init(gradients)
    compiled = jax.jit(update, donate_argnums=0).lower(state, gradients).compile()
    return compiled, gradients, state


def build_update(system: str) -> Callable[[], Any]:
    """Return a function that computes an update of a million parameters."""
    import jax

    compiled, gradients, state = update_program(system)
    carry = [state]

    def run() -> None:
        carry[0], updates = compiled(carry[0], gradients)
        jax.block_until_ready((carry[0], updates))

    return run


def build_hand_fused() -> Callable[[], Any]:
    """Return a function that computes the LSTM's update of a flat array of a million parameters."""
    import jax
    import jax.numpy as jnp

    from metaguide.optimizers import lstm

    flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradients_of_model())])
    begin, update = hand_fused(lstm(p=P, scale=SCALE).init(jax.random.key(0)), CHUNK)
    carry, parts = [begin(flat)], list(flat.reshape(-1, CHUNK))

    def run() -> None:
        carry[0], updates = update(carry[0], parts)
        jax.block_until_ready((carry[0], updates))

    return run


def hand_fused(theta: Any, chunk: int):
    """Return (begin, update) of the LSTM rule, written for speed and only for one flat array.

    One small program updates a chunk in place, with its memory donated, and is called for each
    chunk: no array of all chunks is filled, copied or split. A layer needs one product, of input
    and hidden units concatenated, and one tanh for all of its gates: σ(x) = (1 + tanh(x / 2)) / 2,
    where the kernel already contains the factor 1/2.

    Args:
        theta: parameters of the rule with two layers.
        chunk: coordinates to update at once.

    Returns:
        `begin`: flat array -> memory; `update`: (memory, list of chunks of the gradient) ->
        (memory, flat update).
    """
    import jax
    import jax.numpy as jnp

    hidden, dtype = theta["output"].size, theta["output"].dtype
    half = jnp.repeat(jnp.asarray([0.5, 0.5, 0.5, 1], dtype), hidden)
    layers = [
        ((layer["kernel"] * half).T, (layer["bias"] * half)[:, None])
        for layer in (theta["layer0"], theta["layer1"])
    ]

    @functools.partial(jax.jit, donate_argnums=0)
    def of_chunk(memory: Any, gradient: jax.Array) -> tuple[Any, jax.Array]:
        size = jnp.abs(gradient)
        large = size >= np.exp(-P)
        logarithm = jnp.where(large, jnp.log(jnp.maximum(size, np.exp(-P))) / P, -1)
        x = jnp.stack([logarithm, jnp.where(large, jnp.sign(gradient), np.exp(P) * gradient)])
        after = []
        for (kernel, bias), (h, c) in zip(layers, memory, strict=True):
            i, f, o, new = jnp.split(jnp.tanh(kernel @ jnp.concatenate([x, h]) + bias), 4)
            c = 0.5 * ((f + 1) * c + (i + 1) * new)
            x = 0.5 * (o + 1) * jnp.tanh(c)
            after.append((x, c))
        return after, SCALE * (theta["output"] @ x)

    def begin(flat: jax.Array) -> list:
        def zeros() -> jax.Array:
            return jnp.zeros((hidden, chunk), dtype)

        return [[(zeros(), zeros()) for _ in layers] for _ in range(flat.size // chunk)]

    def update(memory: list, parts: list[jax.Array]) -> tuple[list, jax.Array]:
        after = [of_chunk(*pair) for pair in zip(memory, parts, strict=True)]
        return [one for one, _ in after], jnp.concatenate([moved for _, moved in after])

    return begin, update


def check(peers: Sequence[str], problems: int = 8) -> dict[str, float]:
    """Compare the peers' meta-gradients and the hand-written updates with ours, in float64.

    Args:
        peers: names of the peers.
        problems: number of quadratics.

    Returns:
        The relative difference for each peer, and for "hand-fused".

    Raises:
        AssertionError: one of them computes something else.
    """
    import jax

    found = {}
    with jax.enable_x64(True):
        if peers:
            from experiments.benchmarks.learned_optimizer_peers import meta_gradient

            meta, many, carry = in_float64(begun(problems))
            _, slope, _ = jax.jit(many.gradient)(meta, (), jax.random.key(0), 0.0, carry)
            ours = inputs_of({"rule": slope["rule"]}, carry)["theta"]
            inputs = inputs_of(meta, carry)
            found = {peer: apart(meta_gradient(peer, inputs), ours) for peer in peers}
        found["hand-fused"] = hand_fused_apart()
    wrong = {name: value for name, value in found.items() if not value < 1e-6}
    assert not wrong, f"these differ from ours: {wrong}"
    return found


def hand_fused_apart(chunk: int = 50, chunks: int = 4, steps: int = 3) -> float:
    """Return the difference between the hand-written rule's updates and ours after some steps."""
    import jax
    import jax.numpy as jnp

    from metaguide.optimizers import lstm

    rule = lstm(p=P, scale=SCALE)
    theta = in_float64(rule.init(jax.random.key(0)))
    gradients = np.random.default_rng(0).normal(size=(steps, chunks, chunk)) ** 9
    optimizer, (begin, update) = rule.transform(theta), hand_fused(theta, chunk)
    state, memory = optimizer.init(jnp.zeros(chunks * chunk)), begin(jnp.zeros(chunks * chunk))
    ours, theirs = {}, {}
    for i, gradient in enumerate(gradients):
        moved, state = optimizer.update(jnp.asarray(gradient.ravel()), state)
        memory, own = update(memory, list(jnp.asarray(gradient)))
        ours[str(i)], theirs[str(i)] = np.asarray(moved), np.asarray(own)
    return apart(theirs, ours)


def memory_rows() -> list[dict[str, Any]]:
    """Return the memory that compiled programs take, by `compiled.memory_analysis()`.

    Returns:
        Rows with `mib` and `share`. `mib` is, for an update, its temporary arrays and what it
        returns beyond the donated state; for a window of all quadratics, its temporary arrays.
        `share` is relative to the optimizer's state, or to the window of `WINDOW` steps.
    """
    import jax

    rows = []
    for system in ("lstm", "mlp", "hyper", "adam"):
        compiled, _, state = update_program(system)
        used: Any = compiled.memory_analysis()
        taken = used.temp_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
        whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        rows.append(memory_row("memory of an update", system, taken, whole))
    windows = {"20 steps": (WINDOW, False), "200 steps": (200, False), "200, remat": (200, True)}
    short = None
    for name, (steps, remat) in windows.items():
        meta, many, carry = begun(PROBLEMS, None, steps, remat)
        lowered = jax.jit(many.gradient).lower(meta, (), jax.random.key(0), 0.0, carry)
        used: Any = lowered.compile().memory_analysis()
        taken = used.temp_size_in_bytes
        short = short or taken
        rows.append(memory_row("memory of a window", name, taken, short))
    return rows


def memory_row(workload: str, system: str, taken: int, whole: int) -> dict[str, Any]:
    """Return a row with the bytes taken and their share of `whole`."""
    return {
        "workload": workload,
        "system": system,
        "mib": taken / 2**20,
        "share": taken / whole,
    }


def workloads(peers: Sequence[str]) -> list[Workload]:
    """Return all timed workloads, each with ours first, then the installed peers."""
    update = {name: functools.partial(build_update, name) for name in ("lstm", "mlp", "hyper")}
    return [
        Workload(
            "quadratics",
            [
                System(
                    "metaguide",
                    build_quadratics,
                    on_cpu_devices(cores()) | ONE_THREAD,
                    STEPS_PER_CALL,
                ),
                System("metaguide-1-core", build_quadratics, ONE_THREAD, STEPS_PER_CALL),
                *(System(peer, functools.partial(build_peer, peer, 1)) for peer in peers),
                *(
                    System(f"{peer}-all-cores", functools.partial(build_peer, peer, cores()))
                    for peer in peers
                    if peer == "torch-batched"
                ),
            ],
        ),
        Workload(
            "update-lstm",
            [System("lstm", update["lstm"]), System("hand-fused", build_hand_fused)],
        ),
        Workload(
            "update-mlp",
            [
                System("mlp", update["mlp"]),
                System("hyper", update["hyper"]),
                System("adam", functools.partial(build_update, "adam")),
            ],
        ),
    ]


def on_gpu(peers: Sequence[str]) -> list[Workload]:
    """Return the workloads to time on a GPU."""
    ours = System("metaguide", build_quadratics, {}, STEPS_PER_CALL)
    theirs = [System(p, functools.partial(build_peer, p, 1, "cuda")) for p in peers]
    rules = ("lstm", "mlp", "hyper", "adam")
    return [
        Workload("quadratics", [ours, *theirs]),
        Workload(
            "updates", [System(name, functools.partial(build_update, name)) for name in rules]
        ),
    ]


def main() -> None:
    """Check, measure, print the tables and write the rows."""
    gpu = DEVICE.value == "gpu"
    if gpu:  # compare in float64 on the CPU, and take no GPU memory in this process
        import jax

        jax.config.update("jax_platforms", "cpu")
    peers = list(TORCH) if importlib.util.find_spec("torch") else []
    if not peers:
        print("PyTorch is not installed: pip install -e '.[bench]' to time it too.")
    if COMPARE.value:
        for name, value in check(peers).items():
            print(f"{name} agrees with ours up to {value:.1e}")
    counted = memory_rows() if not gpu and (not ONLY.value or "memory" in ONLY.value) else []
    report(on_gpu(peers) if gpu else workloads(peers), ROUNDS.value, OUTPUT.value, counted)


if __name__ == "__main__":
    flags.set_default(ROUNDS, 10)
    start(main)
