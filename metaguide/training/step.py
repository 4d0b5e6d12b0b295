"""One training step over several objectives: J(θ) = Σ λₜ Jₜ(θ), compiled once for a stage."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from metaguide.objectives.weighting import Weighting
from metaguide.training.program import Program
from metaguide.training.state import TrainState
from metaguide.types import Metrics, Params

Objective = Callable[
    [Params, Any, Key[Array, ""], Float[Array, ""]], tuple[Float[Array, ""], Metrics]
]
"""(meta, data, key, progress in [0, 1)) -> (loss, metrics): draws its own batch out of `data`."""

Step = Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, Metrics]]
"""(state, data by objective) -> (next state, metrics of this step)."""


def init_state(
    meta: Params,
    weighting: Weighting,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
) -> TrainState:
    """Returns the state before the first step, in buffers of its own (the step donates them)."""
    meta = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.asarray(leaf).dtype, copy=True), meta)
    params = {"meta": meta, "weighting": weighting.init()}
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jnp.copy(key))


def make_step(
    objectives: Mapping[str, Objective],
    weighting: Weighting,
    optimizer: optax.GradientTransformation,
    total: int,
) -> Program:
    """Builds the compiled step that minimises all objectives together.

    Args:
        objectives: what to minimise, by name.
        weighting: how the losses are summed; its own parameters are trained along.
        optimizer: any optax transformation, over `{"meta": ..., "weighting": ...}`.
        total: number of steps of the whole stage; objectives see `progress` = step / total.

    Returns:
        A compiled `(state, data) -> (state, metrics)` that donates `state`. `data[name]` goes to
        the objective `name`. Metrics are `loss` (the weighted sum), `gradient_norm`, and for each
        objective `name/loss` and `name/metric`.

    Raises:
        ValueError: if there is no objective, or `total` is not positive.
    """
    if not objectives or total < 1:
        raise ValueError(
            f"a step needs an objective and at least one step in all, got {len(objectives)} "
            f"objectives and total={total}"
        )

    def joint(params: Params, data: Mapping[str, Any], key: Array, progress: Array) -> Any:
        losses, metrics = {}, {}
        for index, (name, objective) in enumerate(sorted(objectives.items())):
            losses[name], own = objective(
                params["meta"], data[name], jax.random.fold_in(key, index), progress
            )
            metrics |= {f"{name}/{metric}": value for metric, value in own.items()}
            metrics[f"{name}/loss"] = losses[name]
        return weighting.combine(params["weighting"], losses), metrics

    def step(state: TrainState, data: Mapping[str, Any]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        progress = state.step.astype(jnp.float32) / total
        (loss, metrics), gradient = jax.value_and_grad(joint, has_aux=True)(
            state.params, data, key, progress
        )
        # Optax raises floats to its int32 count, which strict promotion of dtypes forbids.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
        return TrainState(state.step + 1, params, optimizer_state, state.key), metrics

    return Program(step, donate_argnums=(0,))
