"""The state that training carries from step to step and that a checkpoint stores."""

from typing import Any, NamedTuple

from jaxtyping import Array, Int, Key, PyTree

from metaguide.types import Params


class TrainState(NamedTuple):
    """Everything that a training step reads and writes besides its data.

    Attributes:
        step: number of steps taken.
        params: `{"meta": the meta-parameters, "weighting": parameters of the loss weights}`.
        optimizer: the state of the optax transformation over `params`.
        key: the stage's key; step t draws from `fold_in(key, t)`, so the key itself never changes
            and a resumed run makes the same draws as an unbroken one.
        carry: keyed by objective, the state that its gradient carries between steps, such as
            inner problems in progress. Most have none.
    """

    step: Int[Array, ""]
    params: Params
    optimizer: PyTree
    key: Key[Array, ""]
    carry: dict[str, Any]
