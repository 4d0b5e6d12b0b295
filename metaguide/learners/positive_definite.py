"""Linear systems of positive definite matrices, solved for many episodes at once."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def solve(matrix: Float[Array, "n n"], right: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """Return X of A X = B by a Cholesky decomposition of a positive definite A.

    It is differentiated in both modes, any number of times, and may be mapped.

    Args:
        matrix: A; symmetric.
        right: B.
    """
    return jax.lax.custom_linear_solve(
        lambda x: matrix @ x, right, lambda _, b: _solve_alone(matrix, b), symmetric=True
    )


def with_penalty(
    gram: Float[Array, "n n"], penalty: float | Float[Array, ""]
) -> Float[Array, "n n"]:
    """Return a Gram matrix + λI, with λ raised until a Cholesky decomposition exists."""
    least = 8 * jnp.finfo(gram.dtype).eps * jax.lax.stop_gradient(jnp.trace(gram))
    penalty = jnp.maximum(jnp.asarray(penalty, gram.dtype), least)
    return gram + penalty * jnp.eye(len(gram), dtype=gram.dtype)


def _cholesky(matrix: Float[Array, "n n"], right: Float[Array, "n k"]) -> Float[Array, "n k"]:
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix), right)


_solve_alone = jax.custom_batching.custom_vmap(_cholesky)
"""`_cholesky`, one matrix after the other on a CPU.

There jaxlib (0.10.2) splits a batch of decompositions among the threads that run the program, and
waits for them in one of these threads: as many batches at once as there are threads wait for ever.
"""


@_solve_alone.def_vmap
def _mapped(size: int, mapped: list[bool], *args: Any) -> tuple[Array, bool]:
    args = tuple(
        arg if is_mapped else jnp.broadcast_to(arg, (size, *arg.shape))
        for arg, is_mapped in zip(args, mapped, strict=True)
    )
    found = jax.lax.platform_dependent(
        *args,
        cpu=lambda *args: jax.lax.map(lambda one: _solve_alone(*one), args),
        default=jax.vmap(_cholesky),
    )
    return found, True
