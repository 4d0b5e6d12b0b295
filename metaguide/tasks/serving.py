"""What a trained guide brings to a task, and what the task makes of it in one domain."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from metaguide.data.encoding import Lengths, TextReader
from metaguide.data.tokenizer import Tokenizer
from metaguide.methods import NOTHING, adaptation_of
from metaguide.models.guide import GuideModel
from metaguide.optimizers import Rule
from metaguide.training.program import in_pieces
from metaguide.types import AdaptedPredictFn, Learner, Params, Problem


class Reading(NamedTuple):
    """What turns texts and pictures into arrays.

    Attributes:
        reader: of texts.
        lengths: tokens kept.
        images: whether pictures are read.
        max_answer_tokens: most tokens of an answer.
    """

    reader: TextReader
    lengths: Lengths
    images: bool
    max_answer_tokens: int

    @property
    def tokenizer(self) -> Tokenizer:
        """The reader's tokenizer, where tokens are read."""
        assert self.reader.tokenizer is not None
        return self.reader.tokenizer


class Serving(NamedTuple):
    """What serves one task: parameters, and how they adapt.

    Attributes:
        meta: {"params": the guide's}, and "rule" beside them where a learned optimizer adapts them.
        method: a name in `metaguide.methods.IN_GUIDE`.
        learning_rate: of its gradient descent, or its penalty.
        steps: of its gradient descent.
        rule: of the learned optimizer.
        is_trained: False if the heads are as they were initialised, in a guide that was built from
            a pretrained encoder alone.
    """

    meta: Params
    method: str
    learning_rate: float
    steps: int
    rule: Rule | None = None
    is_trained: bool = True

    def __repr__(self) -> str:
        """The method: parameters are thousands of numbers."""
        return f"<Serving by {self.method}, rate {self.learning_rate:g}, {self.steps} steps>"


class Adapted(NamedTuple):
    """One task, adapted to a domain.

    Attributes:
        learner: whose `predict` reads `state`; it is jitted.
        state: opaque.
        context: of the task.
        chosen: ids of the examples adapted to.
        classes: names of the classes, where the task has any.
    """

    learner: Learner
    state: Any
    context: Any
    chosen: tuple[str, ...]
    classes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """How many examples it adapted to: the state is thousands of numbers."""
        return f"<Adapted to {len(self.chosen)} examples>"


class Server(NamedTuple):
    """A guide as one of its tasks sees it.

    Attributes:
        model: the guide's.
        reading: how it reads.
        serving: what serves the task.
        programs: what has been compiled, by key; it is added to.
    """

    model: GuideModel
    reading: Reading
    serving: Serving
    programs: dict[Any, Any]

    def learner(
        self,
        key: tuple,
        problem: Callable[[], Problem],
        adapts: bool,
        predict: Callable[[Learner], AdaptedPredictFn] = lambda learner: learner.predict,
    ) -> Learner:
        """Return how the task adapts, jitted.

        Args:
            key: of the program; two calls with the same one get the same learner.
            problem: makes what adapts, where the key is new.
            adapts: False answers from the parameters as they were trained.
            predict: of the learner, what is compiled in place of its `predict`.
        """
        key = (*key, adapts)
        if key not in self.programs:
            serving = self.serving
            adaptation = adaptation_of(serving.method) if adapts else NOTHING
            learner = adaptation.tuned_to(
                problem(), serving.learning_rate, serving.steps, serving.rule
            )
            self.programs[key] = learner._replace(
                adapt=jax.jit(learner.adapt),
                predict=jax.jit(predict(learner)),
            )
        return self.programs[key]


def is_finite(tree: Any) -> bool:
    """Return whether all numbers of a pytree are finite."""
    leaves = jax.device_get(jax.tree.leaves(tree))
    return all(np.isfinite(leaf).all() for leaf in leaves)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities along the last axis, on the host."""
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def ask(adapted: Adapted, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what an adapted task predicts of rows, in pieces of a few sizes.

    Raises:
        ValueError: an output is not finite.
    """
    outputs = in_pieces(
        lambda piece: adapted.learner.predict(adapted.state, piece, adapted.context), rows
    )
    for name, leaf in outputs.items():
        # Of spans only where they stand comes out, and `finite`, whether their scores are.
        if not (leaf.all() if name == "finite" else np.isfinite(leaf).all()):
            name = "span scores" if name == "finite" else name
            raise ValueError(
                f"the guide's {name} are not finite: it diverged; adapt to fewer shots, or serve "
                "another method"
            )
    return outputs
