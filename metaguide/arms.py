"""The arms of a comparison: how each is meta-trained, how it adapts, and what it starts from."""

from collections.abc import Sequence
from typing import NamedTuple

import optax
from jaxtyping import Array

from metaguide.inner_loop import FirstOrder, Mode, Unrolled
from metaguide.learners import (
    anil,
    fine_tuning,
    joint,
    learned,
    logistic,
    maml,
    prototypical,
    ridge,
)
from metaguide.optimizers import Rule
from metaguide.optimizers.rule import Theta
from metaguide.optimizers.stored import RULES
from metaguide.types import Learner, Problem


class Way(NamedTuple):
    """A way to adapt; arms that share it share their compiled programs.

    Attributes:
        adapts: "all" parameters, the "head" of the task, a classifier on frozen "features", or
            "nothing".
        by: what makes the gradient steps, "sgd", "adam" or a kind of learned optimizer, such as
            "lstm"; which classifier, "ridge", "logistic" or "prototypes".
    """

    adapts: str
    by: str = ""

    @property
    def is_learned(self) -> bool:
        """Whether a learned optimizer makes the steps."""
        return self.by in RULES


class Arm(NamedTuple):
    """One way to a new domain.

    Attributes:
        stage: whose parameters it adapts: "random", "multitask" or "metatrain".
        way: how it adapts them.
        start: what its meta-training begins at, the "multitask" stage or another arm. A learned
            optimizer is all that is learned there: the parameters stay as they were.
    """

    stage: str
    way: Way
    start: str = "multitask"


ARMS = {
    "scratch": Arm("random", Way("all", "sgd")),
    "zero-shot": Arm("multitask", Way("nothing")),
    "fine-tuning": Arm("multitask", Way("all", "sgd")),
    "fine-tuning-adam": Arm("multitask", Way("all", "adam")),
    "head-only": Arm("multitask", Way("head", "sgd")),
    "head-only-adam": Arm("multitask", Way("head", "adam")),
    "ridge": Arm("multitask", Way("features", "ridge")),
    "logistic": Arm("multitask", Way("features", "logistic")),
    "maml": Arm("metatrain", Way("all", "sgd")),
    "first-order": Arm("metatrain", Way("all", "sgd")),
    "anil": Arm("metatrain", Way("head", "sgd")),
    "prototypical": Arm("metatrain", Way("features", "prototypes")),
    "rnn": Arm("metatrain", Way("all", "rnn")),
    "lstm": Arm("metatrain", Way("all", "lstm")),
    "hyper": Arm("metatrain", Way("all", "hyper")),
    "lstm-head": Arm("metatrain", Way("head", "lstm")),
    "maml+lstm": Arm("metatrain", Way("all", "lstm"), start="maml"),
}
"""All arms by name."""

META_TRAINED = tuple(name for name, arm in ARMS.items() if arm.stage == "metatrain")
"""Names of the arms that are meta-trained."""


def arm_named(name: str, among: Sequence[str] = tuple(ARMS)) -> Arm:
    """Return an arm.

    Raises:
        ValueError: there is none of that name; the message lists those there are.
    """
    if name not in among:
        raise ValueError(f"there is no learner {name!r}; there are {', '.join(among)}")
    return ARMS[name]


def meta_learner(
    name: str,
    kind: str,
    problem: Problem,
    rate: float,
    steps: int,
    remat: bool = False,
    rule: Rule | None = None,
) -> Learner:
    """Return the learner that an arm is meta-trained as, on one kind of task.

    Where an arm has nothing to learn on a kind (prototypes do not answer questions), the kind is
    trained jointly beside it, so that the shared encoder does not forget it. A user's few products
    move the user's side alone: on recommendation MAML holds the encoder, as ANIL does, and so do
    learned optimizers.

    Args:
        name: one of `META_TRAINED`.
        kind: of task.
        problem: of that kind.
        rate: of the inner loop's gradient descent.
        steps: of the inner loop.
        remat: compute the inner steps' activations anew in the backward pass.
        rule: of the learned optimizer, where the arm has one.

    Raises:
        ValueError: the arm is not meta-trained, or there is none of that name.
    """
    arm = arm_named(name, META_TRAINED)
    if name == "prototypical":
        return joint(problem) if problem.way is None else prototypical(problem)
    way = Way("head", arm.way.by) if kind == "recommendation" else arm.way
    if way.is_learned:
        return _by_rule(way, problem, rule, steps)
    mode: Mode = FirstOrder() if name == "first-order" else Unrolled(remat)
    adapts = anil if way.adapts == "head" else maml
    return adapts(problem, optax.sgd(rate), steps, mode)


def adaptation(
    way: Way, problem: Problem, rate: float | Array, steps: int, rule: Rule | None = None
) -> Learner:
    """Return the learner that adapts at test time.

    Args:
        way: how it adapts.
        problem: what adapts.
        rate: of SGD or Adam, the factor of a learned optimizer's updates, or a probe's penalty.
        steps: of gradient descent.
        rule: of the learned optimizer, where one makes the steps.
    """
    if way.is_learned:
        return _by_rule(way, problem, rule, steps, factor=rate)
    head_only = way.adapts == "head"
    ways = {
        "": lambda: joint(problem),
        "sgd": lambda: fine_tuning(problem, optax.sgd(rate), steps, head_only),
        "adam": lambda: fine_tuning(problem, optax.adam(rate), steps, head_only),
        "ridge": lambda: ridge(problem, rate),
        "logistic": lambda: logistic(problem, rate),
        "prototypes": lambda: prototypical(problem),
    }
    return ways[way.by]()


def _by_rule(
    way: Way, problem: Problem, rule: Rule | None, steps: int, *, factor: float | Array = 1.0
) -> Learner:
    if rule is None:
        raise ValueError(f"a learned optimizer, {way.by}, makes the steps; give its rule")

    def transform(theta: Theta) -> optax.GradientTransformation:
        return optax.chain(rule.transform(theta), optax.scale(factor))

    head_only = way.adapts == "head"
    return learned(problem, rule.init, transform, steps, FirstOrder(), True, head_only)
