"""What training carries from step to step, and what a checkpoint holds."""

from typing import Any, NamedTuple

from jaxtyping import Array, Int, Key, PyTree

from metaguide.types import Params


class TrainState(NamedTuple):
    """Everything that a training step reads and writes besides its data.

    Attributes:
        step: how many steps have been taken.
        params: `{"meta": what the stage learns, "weighting": parameters of the loss weights}`.
        optimizer: the state of the optax transformation over `params`.
        key: the stage's key; step t draws from `fold_in(key, t)`, so that the key itself never
            changes and a resumed run draws what the unbroken one would have drawn.
        carry: by objective, what its gradient takes over from the step before: inner problems on
            their way. Most have none.
    """

    step: Int[Array, ""]
    params: Params
    optimizer: PyTree
    key: Key[Array, ""]
    carry: dict[str, Any]
