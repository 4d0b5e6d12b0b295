"""A learned optimizer: parameters θ, and the optax transform that θ makes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Key, PyTree

Theta = Any
"""A pytree: what meta-training learns."""


class Joint(NamedTuple):
    """How the states of many problems become the state of one, of which they are parts, and back.

    A rule has it whose update of an entry depends on the gradients of that entry alone: then many
    small problems are one large one, and fill the long loops that a processor is good at.

    Attributes:
        join: (states, parameters), both with a leading axis of problems -> state of all of them.
        part: (state of all of them, parameters) -> states.
    """

    join: Callable[[PyTree, PyTree], PyTree]
    part: Callable[[PyTree, PyTree], PyTree]


class Rule(NamedTuple):
    """A learned optimizer as two pure functions.

    Attributes:
        kind: what it is, such as "lstm".
        init: key -> θ.
        transform: θ -> the optax transform; works in `optax.chain`, in plain training, and inside
            an inner loop.
        settings: all that θ and the transform depend on beside the kind, plain JSON values; a
            stored θ of other ones is refused.
        joint: see `Joint`; None where an update reads the loss, the step or the tensor as a whole.
    """

    kind: str
    init: Callable[[Key[Array, ""]], Theta]
    transform: Callable[[Theta], optax.GradientTransformationExtraArgs]
    settings: Mapping[str, Any] = MappingProxyType({})
    joint: Joint | None = None

    @property
    def name(self) -> str:
        """Kind and settings, for messages."""
        return named(self.kind, self.settings)


def named(kind: str, settings: Mapping[str, Any]) -> str:
    """Return the name of a rule, such as "mlp(hidden=8, scale=0.01)"."""
    given = ", ".join(f"{name}={value}" for name, value in settings.items())
    return f"{kind}({given})" if given else kind


def check_theta(rule: str, init: Callable[..., Theta], theta: Theta) -> None:
    """Refuse parameters of another rule, or of this one at another size.

    Raises:
        ValueError: names the rule and the first leaf that differs.
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
    """Refuse what no rule can read; traced values cannot be looked at, and pass.

    Raises:
        TypeError: a leaf is not of floating point.
        ValueError: a leaf is not a number.
    """
    for name, leaf in by_name(gradients).items():
        name = name or "the gradient"
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"{rule}: {name} is {jnp.result_type(leaf)}; a learned rule updates floating-point "
                f"parameters only; leave others out with optax.partition"
            )
        if not isinstance(leaf, Tracer) and not np.isfinite(leaf).all():
            raise ValueError(f"{rule}: the gradient {name} is not finite")


def loss_given(rule: str, value: ArrayLike | None) -> Array:
    """Return the loss as an array.

    Raises:
        ValueError: it was not given.
    """
    if value is None:
        raise ValueError(f"{rule} reads the loss: call update(gradient, state, params, value=loss)")
    return jnp.asarray(value)


def dense(key: Key[Array, ""], inputs: int, outputs: int) -> dict[str, Array]:
    """Return {"kernel": [inputs, outputs], "bias"}: normal of variance 1 / inputs, and 0."""
    kernel = jax.random.normal(key, (inputs, outputs)) / inputs**0.5
    return {"kernel": kernel, "bias": jnp.zeros((outputs,))}


def by_name(tree: PyTree) -> dict[str, Any]:
    """Return the leaves of a tree by their path in it, such as "['layer0']['bias']"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
