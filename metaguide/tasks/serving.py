"""Serving: what a trained guide provides to its tasks, and a task adapted to one domain."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from metaguide.data.encoding import Lengths, TextReader
from metaguide.data.tokenizer import TextTokenizer
from metaguide.methods import NOTHING, Adaptation, adaptation_of
from metaguide.models.guide import GuideModel
from metaguide.optimizers import Rule
from metaguide.tasks.widths import by_windows, in_few_widths
from metaguide.training.program import SIZES, in_pieces
from metaguide.types import HASHES, AdaptedPredictFn, Learner, Params, Problem

Fill = Callable[[Any], Any]
"""A pytree of arrays or shapes -> the saved arrays of the same structure, shapes and dtypes."""


class Reading(NamedTuple):
    """How texts and pictures are turned into arrays.

    Attributes:
        reader: reader of texts.
        lengths: numbers of tokens kept.
        images: whether pictures are read.
        max_answer_tokens: the most tokens of an answer.
        known_classes: names of the classes that training has seen.
    """

    reader: TextReader
    lengths: Lengths
    images: bool
    max_answer_tokens: int
    known_classes: frozenset[str] = frozenset()

    @property
    def tokenizer(self) -> TextTokenizer:
        """The reader's tokenizer; only if tokens are read."""
        assert self.reader.tokenizer is not None
        return self.reader.tokenizer

    def as_read_by(self, adaptation: Adaptation) -> "Reading":
        """Return the reading of an adaptation, which may read n-grams that the guide does not."""
        if adaptation.reads == "words":
            return self._replace(reader=TextReader(None, buckets=HASHES), images=False)
        if adaptation.reads == "both" and not self.reader.buckets:
            return self._replace(reader=replace(self.reader, buckets=HASHES))
        return self


class Serving(NamedTuple):
    """The parameters that serve one task, and the method that adapts them.

    Attributes:
        meta: {"params": the guide's parameters}, plus "rule" if a learned optimizer adapts them.
        method: a name in `metaguide.methods.IN_GUIDE`.
        learning_rate: learning rate of the method's gradient descent, or its penalty.
        steps: number of steps of its gradient descent.
        rule: the learned optimizer's rule, if any.
        is_trained: False if the heads are still at their initialisation, as in a guide built from
            a pretrained encoder alone.
    """

    meta: Params
    method: str
    learning_rate: float
    steps: int
    rule: Rule | None = None
    is_trained: bool = True

    def __repr__(self) -> str:
        """Show the method, not the thousands of parameters."""
        return f"<Serving by {self.method}, rate {self.learning_rate:g}, {self.steps} steps>"


class Adapted(NamedTuple):
    """One task, adapted to a domain.

    Attributes:
        learner: the jitted learner whose `predict` reads `state`.
        state: the learner's adapted state, opaque to the task.
        context: the task's context.
        support: the examples adapted to.
        classes: names of the classes, if the task has any.
        unlabelled: the examples that were read without their labels.
        by_names: whether it adapted to the names of the classes alone.
    """

    learner: Learner
    state: Any
    context: Any
    support: tuple[Any, ...] = ()
    classes: tuple[str, ...] = ()
    unlabelled: tuple[Any, ...] = ()
    by_names: bool = False

    @property
    def is_adapted(self) -> bool:
        """Return whether the state is one that the method adapted."""
        return bool(self.support) or self.by_names

    @property
    def chosen(self) -> tuple[str, ...]:
        """Ids of the examples adapted to."""
        return tuple(one.id for one in self.support)

    def __repr__(self) -> str:
        """Show the number of examples, not the thousands of numbers of the state."""
        return f"<Adapted to {len(self.support)} examples>"


class HeldBack(NamedTuple):
    """How a method predicts the examples of a task after adaptation to others of them.

    Attributes:
        logits: float [examples, classes]; they may be anything but finite if the method diverged.
        labels: int [examples].
        counts: bool [examples], whether another example has the same class.
    """

    logits: np.ndarray
    labels: np.ndarray
    counts: np.ndarray


class Server(NamedTuple):
    """A guide as one of its tasks sees it.

    Attributes:
        model: the guide's model.
        reading: how the guide reads texts and pictures.
        serving: the parameters and the method that serve the task.
        programs: compiled programs by key; a growing cache.
    """

    model: GuideModel
    reading: Reading
    serving: Serving
    programs: dict[Any, Any]

    @property
    def blank(self) -> Reading:
        """The reading with zeros for the vectors of a pretrained encoder, which cost nothing."""
        reader, width = self.reading.reader, self.model.encoder.pretrained
        if reader.vectors is None:
            return self.reading
        zeros = replace(reader, vectors=lambda texts: np.zeros((len(texts), width), np.float32))
        return self.reading._replace(reader=zeros)

    def learner(
        self,
        key: tuple,
        problem: Callable[[], Problem],
        adapts: bool,
        predict: Callable[[Learner], AdaptedPredictFn] = lambda learner: learner.predict,
    ) -> Learner:
        """Return the task's learner, jitted.

        Args:
            key: key of the program; calls with the same key get the same learner.
            problem: builds the problem that adapts; called if the key is new.
            adapts: whether to adapt; if False, the trained parameters answer.
            predict: learner -> the function to compile instead of its `predict`.
        """
        serving = self.serving

        def build() -> Learner:
            adaptation = adaptation_of(serving.method) if adapts else NOTHING
            learner = adaptation.tuned_to(
                problem(), serving.learning_rate, serving.steps, serving.rule
            )
            return learner._replace(
                adapt=jax.jit(learner.adapt),
                predict=jax.jit(predict(learner)),
            )

        return self.compiled((*key, adapts), build)

    def compiled(self, key: tuple, build: Callable[[], Any]) -> Any:
        """Return what `build` returned when the key was new to this model and way to serve."""
        serving = self.serving
        how = serving.method, float(serving.learning_rate), serving.steps, id(serving.rule)
        if (*key, *how) not in self.programs:
            self.programs[*key, *how] = build()
        return self.programs[*key, *how]


def is_finite(tree: Any) -> bool:
    """Return whether all numbers of a pytree are finite."""
    leaves = jax.device_get(jax.tree.leaves(tree))
    return all(np.isfinite(leaf).all() for leaf in leaves)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities along the last axis, on the host."""
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def ask(adapted: Adapted, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return an adapted task's predictions for rows, computed in pieces of few shapes.

    Raises:
        ValueError: an output is not finite.
    """
    context, count = in_few_widths(adapted.context), len(next(iter(rows.values())))

    def call(piece: Any) -> Mapping[str, Any]:
        return adapted.learner.predict(adapted.state, piece, context)

    outputs: dict[str, np.ndarray] = {}
    for places, part, most in by_windows(rows):
        for name, leaf in in_pieces(call, part, min(SIZES[-1], most)).items():
            empty = np.zeros((count, *leaf.shape[1:]), leaf.dtype)
            outputs.setdefault(name, empty)[places] = leaf
    for name, leaf in outputs.items():
        # Spans come out as positions; `finite` says whether their scores are finite.
        if not (leaf.all() if name == "finite" else np.isfinite(leaf).all()):
            name = "span scores" if name == "finite" else name
            raise ValueError(
                f"the guide's {name} are not finite: it diverged; adapt to fewer shots, or serve "
                "another method"
            )
    return outputs
