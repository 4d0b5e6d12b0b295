"""The arms of a comparison: how each is meta-trained, how it adapts, and what it starts from."""

from collections.abc import Sequence
from typing import NamedTuple

import optax
from jaxtyping import Array

from metaguide.inner_loop import FirstOrder, Mode, Unrolled
from metaguide.learners import anil, fine_tuning, joint, logistic, maml, prototypical, ridge
from metaguide.types import Learner, Problem


class Arm(NamedTuple):
    """One way to a new domain.

    Attributes:
        stage: whose parameters it adapts: "random", "multitask" or "metatrain".
        adapts: the way it adapts; arms that share it share their compiled programs.
        tuned: what validation chooses: "rate", "penalty" or "" for nothing.
    """

    stage: str
    adapts: str
    tuned: str = ""


ARMS = {
    "scratch": Arm("random", "gradient", "rate"),
    "zero-shot": Arm("multitask", "none"),
    "fine-tuning": Arm("multitask", "gradient", "rate"),
    "head-only": Arm("multitask", "head", "rate"),
    "ridge": Arm("multitask", "ridge", "penalty"),
    "logistic": Arm("multitask", "logistic", "penalty"),
    "maml": Arm("metatrain", "gradient", "rate"),
    "first-order": Arm("metatrain", "gradient", "rate"),
    "anil": Arm("metatrain", "head", "rate"),
    "prototypical": Arm("metatrain", "prototypes"),
}
"""All arms by name."""


def arm_named(name: str, among: Sequence[str] = tuple(ARMS)) -> Arm:
    """Return an arm.

    Raises:
        ValueError: there is none of that name; the message lists those there are.
    """
    if name not in among:
        raise ValueError(f"there is no learner {name!r}; there are {', '.join(among)}")
    return ARMS[name]


def meta_learner(
    name: str, kind: str, problem: Problem, rate: float, steps: int, remat: bool = False
) -> Learner:
    """Return the learner that an arm is meta-trained as, on one kind of task.

    Where an arm has nothing to learn on a kind (prototypes do not answer questions), the kind is
    trained jointly beside it, so that the shared encoder does not forget it. A user's few products
    move the user's side alone: on recommendation MAML holds the encoder, as ANIL does.

    Args:
        name: "maml", "first-order", "anil" or "prototypical".
        kind: of task.
        problem: of that kind.
        rate: of the inner loop's gradient descent.
        steps: of the inner loop.
        remat: compute the inner steps' activations anew in the backward pass.

    Raises:
        ValueError: the arm is not meta-trained, or there is none of that name.
    """
    arm_named(name, [one for one, arm in ARMS.items() if arm.stage == "metatrain"])
    if name == "prototypical":
        return (
            joint(problem) if problem.way is None or kind == "questions" else prototypical(problem)
        )
    mode: Mode = FirstOrder() if name == "first-order" else Unrolled(remat)
    adapts = anil if name == "anil" or kind == "recommendation" else maml
    return adapts(problem, optax.sgd(rate), steps, mode)


def adaptation(adapts: str, problem: Problem, rate: float | Array, steps: int) -> Learner:
    """Return the learner that adapts at test time; see `Arm.adapts`.

    Args:
        adapts: "gradient", "head", "none", "ridge", "logistic" or "prototypes".
        problem: what adapts.
        rate: of gradient descent, or the penalty of a probe.
        steps: of gradient descent.
    """
    ways = {
        "gradient": lambda: fine_tuning(problem, optax.sgd(rate), steps),
        "head": lambda: fine_tuning(problem, optax.sgd(rate), steps, head_only=True),
        "none": lambda: joint(problem),
        "ridge": lambda: ridge(problem, rate),
        "logistic": lambda: logistic(problem, rate),
        "prototypes": lambda: prototypical(problem),
    }
    return ways[adapts]()
