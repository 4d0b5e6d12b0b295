"""A learned optimizer: parameters θ, and the optax transform that θ defines."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Int, Key, PyTree

Theta = Any
"""The pytree that meta-training learns."""


class Joint(NamedTuple):
    """How to merge the states of many problems into that of one large problem, and split it again.

    Available if a rule's update of an entry depends only on that entry's gradients: many small
    problems can then run as one large one, in the long loops that suit a processor.

    Attributes:
        join: (states, parameters), both with a leading axis of problems -> joint state.
        part: (joint state, parameters) -> states.
    """

    join: Callable[[PyTree, PyTree], PyTree]
    part: Callable[[PyTree, PyTree], PyTree]


class Rule(NamedTuple):
    """A learned optimizer as two pure functions.

    Attributes:
        kind: name of its kind, such as "lstm".
        init: key -> θ.
        transform: θ -> the optax transform; works in `optax.chain`, in plain training, and inside
            an inner loop. An entry whose gradient is not finite is not updated and keeps its
            memory; `skipped` in the state counts the updates with such an entry.
        settings: everything but the kind that θ and the transform depend on, as plain JSON values;
            a stored θ with other settings is rejected.
        joint: see `Joint`; None if an update reads the loss, the step or the complete tensor. It
            belongs to `transform`: use `wrapped` to put something before or behind that.
    """

    kind: str
    init: Callable[[Key[Array, ""]], Theta]
    transform: Callable[[Theta], optax.GradientTransformationExtraArgs]
    settings: Mapping[str, Any] = MappingProxyType({})
    joint: Joint | None = None

    @property
    def name(self) -> str:
        """Return the kind and settings, for messages."""
        return named(self.kind, self.settings)

    def wrapped(
        self,
        wrap: Callable[[optax.GradientTransformationExtraArgs], optax.GradientTransformation],
        kind: str,
    ) -> "Rule":
        """Return the rule with its transform inside another, and the same θ.

        Args:
            wrap: such as `lambda rule: optax.chain(optax.clip_by_global_norm(1.0), rule)`.
            kind: name of its kind, since a θ that was learned with it is of no use without it.

        Returns:
            The rule. Problems are not merged into one for it, whose gradients `wrap` may mix.
        """

        def transform(theta: Theta) -> optax.GradientTransformationExtraArgs:
            return optax.with_extra_args_support(wrap(self.transform(theta)))

        return self._replace(kind=kind, transform=transform, joint=None)


def named(kind: str, settings: Mapping[str, Any]) -> str:
    """Return the name of a rule, such as "mlp(hidden=8, scale=0.01)"."""
    given = ", ".join(f"{name}={value}" for name, value in settings.items())
    return f"{kind}({given})" if given else kind


def check_theta(rule: str, init: Callable[..., Theta], theta: Theta) -> None:
    """Check that the parameters are of this rule, at this size.

    Raises:
        ValueError: they are not; the message names the rule and the first leaf that differs.
    """
    shapes = jax.eval_shape(init, jax.random.key(0))
    wanted, found = (
        {name: jnp.shape(leaf) for name, leaf in by_name(tree).items()} for tree in (shapes, theta)
    )
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"theta is of another rule than {rule}, or of another size of it: {name} is "
                f"{found.get(name, 'missing')} and has to be {wanted.get(name, 'left out')}; give "
                f"what this rule's init made, or the rule that made theta"
            )


def check_gradients(rule: str, gradients: PyTree) -> None:
    """Check that all gradients are floating-point.

    Raises:
        TypeError: a leaf is not floating-point.
    """
    for name, leaf in by_name(gradients).items():
        name = name or "the gradient"
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"{rule}: {name} is {jnp.result_type(leaf)}; a learned rule updates floating-point "
                f"parameters only; leave others out with optax.partition"
            )


def count_skipped(skipped: Int[Array, "*problems"], gradients: PyTree) -> Int[Array, "*problems"]:
    """Return the number of updates so far with a non-finite gradient somewhere.

    Args:
        skipped: the number before this update; one number, or one per problem if the gradients
            have a leading axis of problems.
        gradients: gradients of this update.
    """
    axes = skipped.ndim
    bad = jnp.zeros(skipped.shape, bool)
    for leaf in map(jnp.asarray, jax.tree.leaves(gradients)):
        rest = tuple(range(axes, leaf.ndim))
        bad |= ~jnp.isfinite(leaf).all(axis=rest)
    return skipped + bad.astype(skipped.dtype)


def varying_like(state: PyTree, params: PyTree) -> PyTree:
    """Return a new state that varies over the devices of a `shard_map` as parameters do.

    A `scan` refuses a state that becomes varying in its first step. The numbers stay the same.
    """
    zeros = (jnp.zeros_like(leaf, jnp.int32, shape=()) for leaf in jax.tree.leaves(params))
    none = sum(zeros, jnp.zeros((), jnp.int32))
    return jax.tree.map(lambda leaf: leaf + none.astype(leaf.dtype), state)


def loss_given(rule: str, value: ArrayLike | None) -> Array:
    """Return the loss as an array.

    Raises:
        ValueError: no loss was given.
    """
    if value is None:
        raise ValueError(f"{rule} reads the loss: call update(gradient, state, params, value=loss)")
    return jnp.asarray(value)


def apply_gradients(state: Any, gradients: PyTree, **extra: Any) -> Any:
    """Return a Flax `TrainState` after an update that reads more than the gradient.

    `TrainState.apply_gradients` passes no extra arguments to its optimizer, but `hyper` reads the
    loss.

    Args:
        state: a `flax.training.train_state.TrainState`, or an object with its `tx`, `opt_state`,
            `params`, `step` and `replace`.
        gradients: gradients of its parameters.
        **extra: the optimizer's extra arguments, such as `value=loss`.

    >>> from flax.training.train_state import TrainState
    >>> state = TrainState.create(apply_fn=loss, params=params, tx=optimizer)
    >>> state = jax.jit(apply_gradients)(state, gradient, value=value)
    >>> int(state.step)
    1
    """
    transform = optax.with_extra_args_support(state.tx)
    updates, after = transform.update(gradients, state.opt_state, state.params, **extra)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=after)


def dense(key: Key[Array, ""], inputs: int, outputs: int) -> dict[str, Array]:
    """Return {"kernel": [inputs, outputs], "bias"}: normal with variance 1 / inputs, and 0."""
    kernel = jax.random.normal(key, (inputs, outputs)) / inputs**0.5
    return {"kernel": kernel, "bias": jnp.zeros((outputs,))}


def by_name(tree: PyTree) -> dict[str, Any]:
    """Return the leaves of a tree keyed by their path, such as "['layer0']['bias']"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
