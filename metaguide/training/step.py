"""One training step over several objectives: J(θ) = Σ λₜ Jₜ(θ), compiled once per stage."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from metaguide.objectives.weighting import Weighting
from metaguide.parallel import on_each_device
from metaguide.training.program import Once, compilations, compile_all
from metaguide.training.state import TrainState
from metaguide.types import Metrics, Params

Gradient = Callable[
    [Params, Any, Key[Array, ""], Float[Array, ""]],
    tuple[tuple[Float[Array, ""], Metrics], Params],
]
"""(meta, data, key, progress in [0, 1)) -> ((loss, metrics), ∇loss): draws its batch out of `data`.

For a loss that is a function of the same arguments, `jax.value_and_grad(loss, has_aux=True)`.
"""


class Carrying(NamedTuple):
    """A gradient that carries state between steps, such as half-solved problems.

    Attributes:
        start: (meta, data, key) -> the first step's carry.
        gradient: (meta, data, key, progress, carry) -> ((loss, metrics), ∇loss, carry).
    """

    start: Callable[..., Any]
    gradient: Callable[..., tuple[tuple[Array, Metrics], Params, Any]]


def init_state(
    meta: Params,
    weighting: Weighting,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    carry: Mapping[str, Any] | None = None,
) -> TrainState:
    """Return the state before the first step, in its own buffers (the step donates them).

    Args:
        meta: the meta-parameters.
        weighting: the weighting of the objectives.
        optimizer: the optimizer of both.
        key: the stage's key.
        carry: initial carries of the `Carrying` gradients, keyed by objective.
    """
    meta = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.asarray(leaf).dtype, copy=True), meta)
    params = {"meta": meta, "weighting": weighting.init()}
    # An initial state may hold the parameters themselves, or a key of the caller's.
    state, carried = jax.tree.map(jnp.copy, (optimizer.init(params), dict(carry or {})))
    return TrainState(jnp.zeros((), jnp.int32), params, state, jnp.copy(key), carried)


Step = Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, Metrics]]
"""(state, data by objective) -> (next state, metrics of the step, or of several stacked)."""


class CompiledStep:
    """The compiled step `(state, data) -> (next state, metrics)`, with one program per gradient.

    The gradients of the objectives and the update are separate programs, each called once per step.
    A single program for all of them takes longer to load from the compilation cache than its parts,
    and nothing can be traced meanwhile.
    """

    def __init__(
        self,
        gradients: Mapping[str, Callable[..., Any]],
        update: Callable[..., Any],
        compiled: Callable[..., Any],
    ):
        """Store the parts uncompiled; `compiled(function, donate=...)` jits a device's function."""
        self._gradients = {name: compiled(gradient) for name, gradient in gradients.items()}
        self._update = compiled(update, donate=(0,))
        self._once = Once()

    def compile(self, state: TrainState, data: Mapping[str, Any]) -> None:
        """Compile for a state and data like these, in the first thread that asks."""
        self._once(lambda: compile_all(self._calls(state, data)))

    def __call__(
        self, state: TrainState, data: Mapping[str, Any]
    ) -> tuple[TrainState, dict[str, Array]]:
        """Take a step; `state` is donated, and `data[name]` goes to the objective `name`."""
        self.compile(state, data)
        return _step(self._gradients, self._update, state, data)

    def _calls(
        self, state: TrainState, data: Mapping[str, Any]
    ) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        meta = state.params["meta"]
        for name, gradient in self._gradients.items():
            carry = state.carry.get(name, ())
            yield gradient, (meta, data[name], state.key, state.step, carry)
        # Arrays with the shapes and placement of the gradient programs' outputs.
        losses = dict.fromkeys(self._gradients, state.step.astype(jnp.float32))
        gradients = dict.fromkeys(self._gradients, meta)
        yield self._update, (state._replace(carry={}), losses, gradients)

    def compilations(self) -> int:
        """Return the largest number of argument signatures compiled for any of its programs."""
        return max(compilations(one) for one in (*self._gradients.values(), self._update))


class ScannedStep:
    """One compiled program that takes several steps in a scan and stacks their metrics.

    For small problems, whose step takes less time than the call itself.
    """

    def __init__(
        self,
        gradients: Mapping[str, Callable[..., Any]],
        update: Callable[..., Any],
        compiled: Callable[..., Any],
        steps_per_call: int,
    ):
        """Store the parts uncompiled; `compiled(function, donate=...)` jits a device's function."""

        def steps(
            state: TrainState, data: Mapping[str, Any]
        ) -> tuple[TrainState, dict[str, Array]]:
            def one(state: TrainState, _: None) -> tuple[TrainState, dict[str, Array]]:
                return _step(gradients, update, state, data)

            return jax.lax.scan(one, state, length=steps_per_call)

        self._steps = compiled(steps, donate=(0,))
        self._once = Once()

    def compile(self, state: TrainState, data: Mapping[str, Any]) -> None:
        """Compile for a state and data like these, in the first thread that asks."""
        self._once(lambda: compile_all([(self._steps, (state, data))]))

    def __call__(
        self, state: TrainState, data: Mapping[str, Any]
    ) -> tuple[TrainState, dict[str, Array]]:
        """Take a call's steps; `state` is donated, `data[name]` goes to the objective `name`."""
        self.compile(state, data)
        return self._steps(state, data)

    def compilations(self) -> int:
        """Return the number of argument signatures compiled for the program."""
        return compilations(self._steps)


def _step(
    gradients: Mapping[str, Callable[..., Any]],
    update: Callable[..., Any],
    state: TrainState,
    data: Mapping[str, Any],
) -> tuple[TrainState, dict[str, Array]]:
    """Take one step, whether the gradients and the update are traced or compiled programs."""
    losses, metrics, slopes, carry = {}, {}, {}, {}
    for name, gradient in gradients.items():
        (losses[name], found), slopes[name], carry[name] = gradient(
            state.params["meta"], data[name], state.key, state.step, state.carry.get(name, ())
        )
        if "loss" in found:
            raise ValueError(f"{name} has a metric 'loss', the name of its loss; rename it")
        metrics |= {f"{name}/{metric}": value for metric, value in found.items()}
        metrics[f"{name}/loss"] = losses[name]
    begun = state.carry
    state, whole = update(state._replace(carry={}), losses, slopes)
    return state._replace(carry={name: carry[name] for name in begun}), metrics | whole


def make_step(
    gradients: Mapping[str, Gradient | Carrying],
    weighting: Weighting,
    optimizer: optax.GradientTransformation,
    total: int,
    *,
    mesh: Mesh | None = None,
    parallel: str = "jit",
    steps_per_call: int = 1,
    seeds: int | None = None,
) -> CompiledStep | ScannedStep:
    """Build the compiled step that minimises all objectives together.

    Args:
        gradients: gradients keyed by objective; their carries are in the state, from `init_state`.
        weighting: how the losses are summed; its own parameters are trained too.
        optimizer: any optax transformation, over `{"meta": ..., "weighting": ...}`; the loss is
            passed as `value=` if it takes one.
        total: number of steps of the complete stage; objectives see `progress` = step / total.
        mesh: mesh of the devices that share the tasks, the same as in the gradients; None for one
            device.
        parallel: what maps the step over the devices, "jit" or "pmap".
        steps_per_call: number of steps in one call.
        seeds: number of parallel trainings on the same data, which differ only in their state.
            Every leaf of the state and of the metrics then has an axis of trainings, which is the
            leading axis in the state. None for one training without such an axis.

    Returns:
        The step, scanned if `steps_per_call` is more than 1. Its metrics are `loss` (the
        weighted sum), `gradient_norm`, and for each objective `name/loss` and `name/metric`.

    Raises:
        ValueError: there is no objective, `total` is not positive, or `steps_per_call` does not
            divide it.
    """
    if not gradients or total < 1:
        raise ValueError(
            f"a step needs an objective and at least one step in all, got {len(gradients)} "
            f"objectives and total={total}"
        )
    if steps_per_call < 1 or total % steps_per_call:
        raise ValueError(
            f"{total} steps do not divide into calls of {steps_per_call}; give a multiple of it"
        )

    def at_step(index: int, name: str) -> Callable[..., Any]:
        gradient = gradients[name]

        def program(
            meta: Params, data: Any, key: Array, done: Array, carry: Any
        ) -> tuple[tuple[Array, Metrics], Params, Any]:
            key = jax.random.fold_in(jax.random.fold_in(key, done), index)
            given = (meta, data, key, done.astype(jnp.float32) / total)
            if isinstance(gradient, Carrying):
                if not jax.tree.leaves(carry):
                    raise ValueError(
                        f"the gradient of {name!r} carries state: give `init_state` the carry "
                        f"{{{name!r}: gradient.start(meta, data, key)}}"
                    )
                return gradient.gradient(*given, carry)
            return *gradient(*given), carry

        return program

    def update(
        state: TrainState, losses: Mapping[str, Array], gradients: Mapping[str, Params]
    ) -> tuple[TrainState, dict[str, Array]]:
        loss, (weights, shares) = jax.value_and_grad(weighting.combine, argnums=(0, 1))(
            state.params["weighting"], losses
        )
        # The chain rule: ∇J = Σ ∂J/∂Jₜ ∇Jₜ.
        scaled = [
            jax.tree.map(lambda leaf: shares[name].astype(leaf.dtype) * leaf, gradients[name])
            for name in gradients
        ]
        gradient = {
            "meta": jax.tree.map(lambda *leaves: sum(leaves), *scaled),
            "weighting": weights,
        }
        # Optax raises floats to its int32 count, which strict promotion of dtypes forbids, and a
        # norm may be of several dtypes.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer_state = optax.with_extra_args_support(optimizer).update(
                gradient, state.optimizer, state.params, value=loss
            )
            metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, optimizer_state, state.key, {}), metrics

    programs: dict[str, Callable[..., Any]] = {
        name: at_step(index, name) for index, name in enumerate(sorted(gradients))
    }
    if seeds is not None:
        programs = {name: _for_seeds(program) for name, program in programs.items()}
        update = jax.vmap(update)
    compiled = functools.partial(on_each_device, mesh=mesh, by=parallel)
    if steps_per_call == 1:
        return CompiledStep(programs, update, compiled)
    return ScannedStep(programs, update, compiled, steps_per_call)


def _for_seeds(program: Callable[..., Any]) -> Callable[..., Any]:
    """Return an objective's program for parallel trainings, which share data and step."""
    mapped = jax.vmap(program, (0, None, 0, None, 0))

    def side_by_side(
        meta: Params, data: Any, key: Array, done: Array, carry: Any
    ) -> tuple[tuple[Array, Metrics], Params, Any]:
        # The step number is shared: if it were mapped, a branch on it would compute both sides.
        return mapped(meta, data, key, done[0], carry)

    return side_by_side
