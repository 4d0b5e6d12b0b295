"""Tables of texts of different lengths, one after another."""

import jax.numpy as jnp
from jaxtyping import Array, Shaped


def one_after_another(*tables: Shaped[Array, "_ _"]) -> Shaped[Array, "rows longest"]:
    """Return the rows of all tables, padded with 0 at the end to the longest."""
    longest = max(table.shape[1] for table in tables)
    wide = [jnp.pad(table, ((0, 0), (0, longest - table.shape[1]))) for table in tables]
    return jnp.concatenate(wide)
