"""Many inner problems of a learned optimizer at once: the mean of an estimator's gradients."""

from operator import itemgetter
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from metaguide.optimizers.estimators import Estimator, Particle
from metaguide.optimizers.rule import Theta
from metaguide.parallel import mean_over_devices, own_share, whole_of_shares
from metaguide.training.step import Carrying
from metaguide.types import Metrics, Params, Progress


def particles(estimator: Estimator, meta_batch_size: int, mesh: Mesh | None = None) -> Carrying:
    """Return the mean of an estimator's gradients over the inner problems that it carries.

    Args:
        estimator: the estimator for one inner problem.
        meta_batch_size: number of inner problems in progress, divided over the devices.
        mesh: mesh of the devices that share them; None for one device.

    Returns:
        (meta, data, key, progress, carry) -> ((loss, metrics), gradient, carry), where meta is
        {"rule": θ}; metrics are means, and `last` is the loss at a window's end.

    Raises:
        ValueError: the devices do not divide the tasks.
    """
    devices = 1 if mesh is None else mesh.size
    if meta_batch_size < 1 or meta_batch_size % devices:
        raise ValueError(
            f"{meta_batch_size} inner problems do not divide over {devices} devices; "
            "give a multiple"
        )

    def each(*given: Any) -> tuple[tuple[Array, Metrics], Theta, Particle]:
        seen, slopes, carry = jax.vmap(estimator.gradient, (None, None, 0, 0, None))(*given)
        return seen, jax.tree.map(lambda leaf: leaf.mean(0), slopes), carry

    def alone(
        theta: Theta, data: Any, carry: Particle, keys: Key[Array, " problems"], progress: Progress
    ) -> tuple[tuple[Array, Metrics], Theta, Particle]:
        given = jax.tree.map(itemgetter(0), (carry, keys))
        seen, slope, carry = estimator.gradient(theta, data, *given, progress)
        seen, carry = jax.tree.map(lambda leaf: leaf[None], (seen, carry))
        return seen, slope, carry

    # A batch of one takes longer than its one element.
    many = alone if meta_batch_size == devices else estimator.many or each

    def start(meta: Params, data: Any, key: Key[Array, ""]) -> Any:
        # Staggered, so that they do not all end in the same step.
        keys, ages = jax.random.split(key, meta_batch_size), estimator.ages(meta_batch_size)
        return jax.vmap(estimator.start, (None, None, 0, 0))(meta["rule"], data, keys, ages)

    def gradient(
        meta: Params, data: Any, key: Key[Array, ""], progress: Progress, carry: Particle
    ) -> tuple[tuple[Array, Metrics], Params, Particle]:
        keys = jax.random.split(key, meta_batch_size)
        keys, carry = own_share((keys, carry), mesh)
        seen, slope, carry = many(meta["rule"], data, carry, keys, progress)
        seen = jax.tree.map(lambda leaf: leaf.mean(0), seen)
        seen, slope = mean_over_devices((seen, slope), mesh)
        return seen, {"rule": slope}, whole_of_shares(carry, mesh)

    return Carrying(start, gradient)
