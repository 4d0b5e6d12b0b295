"""Linear systems of positive definite matrices: solutions, gradients, and batches."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from metaguide.learners import positive_definite

BATCHES = """
from concurrent.futures import ThreadPoolExecutor

import jax, jax.numpy as jnp
from metaguide.learners import positive_definite

half = jax.random.normal(jax.random.key(0), (20, 255, 255))
matrices = half @ half.mT + 255 * jnp.eye(255)
solve = jax.jit(jax.vmap(positive_definite.solve))
right = half[..., :5]
with ThreadPoolExecutor(2) as pool:
    for found in pool.map(lambda _: jax.block_until_ready(solve(matrices, right)), range(200)):
        assert jnp.allclose(matrices @ found, right, atol=1e-3)
"""


def system(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    half, right = np.random.default_rng(0).normal(size=(2, *shape, 4, 4))
    return half @ half.mT + np.eye(4), right[..., :2]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_every_matrix_of_a_batch_has_its_own_solution(shape: tuple[int, ...]) -> None:
    """Catches a batch whose order, or whose second axis, is lost."""
    matrix, right = system(*shape)
    solve = positive_definite.solve
    for _ in shape:
        solve = jax.vmap(solve)
    with jax.enable_x64(True):
        found = jax.jit(solve)(jnp.asarray(matrix), jnp.asarray(right))
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right), rtol=1e-10)


def test_one_side_of_a_batch_may_be_shared() -> None:
    """Catches a matrix, or a right side, that is taken for a batch."""
    matrices, rights = system(3)
    with jax.enable_x64(True):
        for axes in ((0, None), (None, 0)):
            one = [
                jnp.asarray(array if axis == 0 else array[0])
                for array, axis in zip((matrices, rights), axes, strict=True)
            ]
            found = jax.vmap(positive_definite.solve, axes)(*one)
            np.testing.assert_allclose(found, np.linalg.solve(*map(np.asarray, one)), rtol=1e-10)


@pytest.mark.slow
def test_its_derivatives_are_those_of_the_solution() -> None:
    """Catches a gradient that is stopped, of one side alone, or of the first order alone."""
    with jax.enable_x64(True):
        matrix, right = map(jnp.asarray, system(2))

        def solved(half: jax.Array, right: jax.Array) -> jax.Array:
            symmetric = half @ half.mT + jnp.eye(4)
            return jax.vmap(positive_definite.solve)(symmetric, right)

        check_grads(solved, (matrix, right), order=2, modes=["fwd", "rev"])


def test_a_matrix_of_no_rank_is_raised_until_it_is_solved() -> None:
    """Catches NaN where all examples are alike and the penalty is too small to be seen."""
    gram = jnp.full((6, 6), 1e4)
    found = positive_definite.solve(positive_definite.with_penalty(gram, 1e-12), jnp.ones((6, 1)))
    assert jnp.isfinite(found).all()


@pytest.mark.slow
def test_large_batches_at_once_come_to_an_end() -> None:
    """Catches the wait for ever of jaxlib's decompositions, two batches at once on two cores."""
    flags = os.environ["METAGUIDE_TESTS_XLA_FLAGS"]
    # NPROC: threads of XLA. Those of BLAS as well would only wait for each other.
    own = {**os.environ, "XLA_FLAGS": flags, "NPROC": "2", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", BATCHES], env=own, timeout=120, check=True)
