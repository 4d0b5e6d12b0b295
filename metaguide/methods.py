"""The methods: each one's initialisation, meta-training, and adaptation at test time.

The tables and the guide read the same entries. A new method is one entry of `METHODS`; if it has an
`adaptation`, a trained guide can adapt by it too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import optax
from jaxtyping import Array

from metaguide.inner_loop import FirstOrder, Mixed, Unrolled
from metaguide.learners import (
    anil,
    features_and_words,
    fine_tuning,
    imaml,
    joint,
    label_spreading,
    learned,
    logistic,
    maml,
    maml_plus_plus,
    map_head,
    matching,
    meta_sgd,
    proto_maml,
    prototypical,
    proximal_sgd,
    r2d2,
    relation,
    reptile,
    ridge,
    soft_k_means,
    tf_idf,
)
from metaguide.optimizers import Rule
from metaguide.optimizers.rule import Theta
from metaguide.optimizers.stored import RULES
from metaguide.types import Learner, Problem


class UnknownMethod(ValueError):
    """There is no method of this name; the message lists the available ones."""


@dataclass(frozen=True)
class Settings:
    """Settings of a method; each method reads some of these fields and ignores the others.

    Attributes:
        steps: number of inner steps, in training or at test.
        learning_rate: learning rate of the inner loop; its initial value if the method learns it.
        inner: the update rule of the inner loop; None for gradient descent at `learning_rate`.
        mode: how the inner loop is differentiated.
        hold_body: adapt only the head, as ANIL does.
        rule: the learned optimizer.
        factor: multiplies the updates of the learned optimizer.
        penalty: λ of a ridge or logistic regression, or of the pull to the trained parameters; its
            initial value if it is learned.
        caution: standard errors by which the MAP head has to gain to be used; None always uses it.
        scale: initial scale of R2-D2's logits.
        temperature: divides distances or similarities; None for the learner's own.
        features: width of the problem's features, for relation networks.
        hidden: number of hidden units of a relation network.
        batch: number of examples in each of Reptile's inner steps; None for the complete support.
        keep_state: whether Reptile carries the inner optimizer's state from task to task.
        strength: λ of iMAML's pull to the initialisation.
        cg_steps: number of iMAML's conjugate-gradient steps.
        damping: damping of iMAML's conjugate gradients.
        multi_step_until: share of training in which MAML++ uses the multi-step loss.
        second_order_from: share of training after which MAML++ uses second-order gradients.
    """

    steps: int = 1
    learning_rate: float | Array = 0.1
    inner: optax.GradientTransformation | None = None
    mode: Unrolled | Mixed = Unrolled()
    hold_body: bool = False
    rule: Rule | None = None
    factor: float | Array = 1.0
    penalty: float | Array = 1.0
    caution: float | None = 2.0
    scale: float = 1.0
    temperature: float | None = None
    features: int = 0
    hidden: int = 64
    batch: int | None = None
    keep_state: bool = False
    strength: float = 2.0
    cg_steps: int = 5
    damping: float = 0.0
    multi_step_until: float = 0.1
    second_order_from: float = 0.5

    @property
    def descent(self) -> optax.GradientTransformation:
        """Return the update rule of the inner loop."""
        return optax.sgd(self.learning_rate) if self.inner is None else self.inner


Build = Callable[[Problem, Settings], Learner]
"""(problem, settings) -> the learner."""


@dataclass(frozen=True, order=True)
class Adaptation:
    """How parameters adapt at test time; methods with the same adaptation share programs.

    Attributes:
        adapts: "all" parameters, the "head" of the task, a classifier on frozen "features", or
            "nothing".
        by: the optimizer, "sgd", "adam" or a kind of learned optimizer, such as "lstm"; or the
            classifier, such as "ridge" or "prototypes". `adapts` and `by` together name the
            adaptation.
        learner: builds the learner that adapts.
        tuned: the field of `Settings` that validation chooses; "" if there is none.
        reads_unlabelled: whether it also learns from examples without a label.
        reads: the "features" of examples, their "words" (n-grams alone, and nothing that was
            trained), or "both".
        reads_names: whether it tells classes without examples apart by their names.
    """

    adapts: str
    by: str
    learner: Build = field(compare=False, repr=False)
    tuned: str = field(default="", compare=False, repr=False)
    reads_unlabelled: bool = field(default=False, compare=False, repr=False)
    reads: Literal["features", "words", "both"] = field(
        default="features", compare=False, repr=False
    )
    reads_names: bool = field(default=False, compare=False, repr=False)

    @property
    def is_learned(self) -> bool:
        """Return whether a learned optimizer makes the steps."""
        return self.by in RULES

    def tuned_to(
        self, problem: Problem, value: float | Array, steps: int, rule: Rule | None = None
    ) -> Learner:
        """Return the learner that adapts at test time.

        Args:
            problem: the problem that adapts.
            value: value of the tuned setting; may be traced.
            steps: number of gradient steps.
            rule: the learned optimizer, if one makes the steps.

        Raises:
            ValueError: a learned optimizer makes the steps but no rule is given, or the classifier
                needs classes but the problem has none.
        """
        settings = Settings(steps=steps, rule=rule)
        return self.learner(
            problem, replace(settings, **{self.tuned: value}) if self.tuned else settings
        )


class Method(NamedTuple):
    """How a method is trained and adapts to a new domain.

    Attributes:
        stage: the stage whose parameters it adapts: "random", "multitask" or "metatrain".
        train: builds its learner in that stage.
        adaptation: how it adapts at test time. None if it adapts as it is trained, with
            meta-parameters that a guide does not keep; then only the tables have it.
        start: the start of its meta-training, the "multitask" stage or another method. For a
            learned optimizer only the rule is trained; the parameters stay unchanged.
        needs: fields of `Settings` that a table's config has to give.
    """

    stage: str
    train: Build
    adaptation: Adaptation | None = None
    start: str = "multitask"
    needs: tuple[str, ...] = ()

    def at_test(self, problem: Problem, settings: Settings) -> Learner:
        """Return the learner that adapts at test time, with the test settings."""
        build = self.train if self.adaptation is None else self.adaptation.learner
        return build(problem, settings)


def by_rule(kind: str, head_only: bool = False) -> Adaptation:
    """Return the adaptation that takes the steps of a learned optimizer.

    Args:
        kind: kind of the optimizer, such as "lstm".
        head_only: freeze the body and adapt only the head.
    """

    def build(problem: Problem, settings: Settings) -> Learner:
        rule = settings.rule
        if rule is None:
            raise ValueError(f"a learned optimizer, {kind}, makes the steps; give its rule")

        def transform(theta: Theta) -> optax.GradientTransformation:
            return optax.chain(rule.transform(theta), optax.scale(settings.factor))

        holds = head_only or settings.hold_body
        return learned(problem, rule.init, transform, settings.steps, FirstOrder(), True, holds)

    return Adaptation("head" if head_only else "all", kind, build, "factor")


def _by_optimizer(
    by: str, optimizer: Callable[..., optax.GradientTransformation], head_only: bool = False
) -> Adaptation:
    def build(problem: Problem, settings: Settings) -> Learner:
        return fine_tuning(problem, optimizer(settings.learning_rate), settings.steps, head_only)

    return Adaptation("head" if head_only else "all", by, build, "learning_rate")


NOTHING = Adaptation("nothing", "", lambda problem, _: joint(problem))
ALL_BY_SGD = _by_optimizer("sgd", optax.sgd)
ALL_BY_ADAM = _by_optimizer("adam", optax.adam)
HEAD_BY_SGD = _by_optimizer("sgd", optax.sgd, head_only=True)
HEAD_BY_ADAM = _by_optimizer("adam", optax.adam, head_only=True)
RIDGE = Adaptation("features", "ridge", lambda problem, s: ridge(problem, s.penalty), "penalty")
LOGISTIC = Adaptation(
    "features", "logistic", lambda problem, s: logistic(problem, s.penalty), "penalty"
)
PROTOTYPES = Adaptation(
    "features", "prototypes", lambda problem, s: prototypical(problem, s.temperature)
)

NAMED = 3
"""As how many examples the name of a class counts in the methods that read names."""

NAMED_PROTOTYPES = Adaptation(
    "features",
    "named-prototypes",
    lambda problem, s: prototypical(problem, s.temperature, NAMED),
)
NAMED_RIDGE = Adaptation(
    "features",
    "named-ridge",
    lambda problem, s: ridge(problem, s.penalty, names=NAMED),
    "penalty",
)
SOFT_K_MEANS = Adaptation(
    "features", "soft-k-means", lambda problem, _: soft_k_means(problem), reads_unlabelled=True
)

LABEL_SPREADING = Adaptation(
    "features",
    "label-spreading",
    lambda problem, _: label_spreading(problem),
    reads_unlabelled=True,
)
VECTORS_AND_WORDS = Adaptation(
    "features",
    "vectors+words",
    lambda problem, _: features_and_words(problem, names=NAMED),
    reads="both",
    reads_names=True,
)
TF_IDF = Adaptation("features", "tf-idf", lambda problem, _: tf_idf(problem), reads="words")


def _map_head(problem: Problem, settings: Settings) -> Learner:
    # The guard refits once per example of the support. It decides whether a few examples improve on
    # two classes that training knows; of many new classes training knows too little to do harm.
    return map_head(problem, settings.penalty, settings.caution if problem.way == 2 else None)


MAP_HEAD = Adaptation("features", "map", _map_head, "penalty")


def _map_all(problem: Problem, settings: Settings) -> Learner:
    inner = proximal_sgd(settings.learning_rate, settings.penalty)
    return fine_tuning(problem, inner, settings.steps)


MAP_ALL = Adaptation("all", "map", _map_all, "penalty")


def _jointly(problem: Problem, settings: Settings) -> Learner:
    return joint(problem)


def _maml(problem: Problem, settings: Settings) -> Learner:
    adapts = anil if settings.hold_body else maml
    return adapts(problem, settings.descent, settings.steps, settings.mode)


def _first_order(problem: Problem, settings: Settings) -> Learner:
    adapts = anil if settings.hold_body else maml
    return adapts(problem, settings.descent, settings.steps, FirstOrder())


def _anil(problem: Problem, settings: Settings) -> Learner:
    return anil(problem, settings.descent, settings.steps, settings.mode)


def _prototypical(problem: Problem, settings: Settings) -> Learner:
    # Prototypes do not answer questions. Such a task is trained jointly with the others, so that
    # the shared encoder does not forget it.
    return joint(problem) if problem.way is None else prototypical(problem, settings.temperature)


def _meta_sgd(problem: Problem, settings: Settings) -> Learner:
    return meta_sgd(problem, settings.learning_rate, settings.steps)


def _maml_plus_plus(problem: Problem, settings: Settings) -> Learner:
    return maml_plus_plus(
        problem,
        settings.learning_rate,
        settings.steps,
        multi_step_until=settings.multi_step_until,
        second_order_from=settings.second_order_from,
        mode=settings.mode,
    )


def _reptile(problem: Problem, settings: Settings) -> Learner:
    return reptile(
        problem,
        settings.descent,
        settings.steps,
        batch=settings.batch,
        keep_state=settings.keep_state,
    )


def _imaml(problem: Problem, settings: Settings) -> Learner:
    return imaml(
        problem,
        settings.descent,
        settings.steps,
        settings.strength,
        settings.cg_steps,
        settings.damping,
    )


def _proto_maml(problem: Problem, settings: Settings) -> Learner:
    return proto_maml(problem, settings.descent, settings.steps)


def _matching(problem: Problem, settings: Settings) -> Learner:
    if settings.temperature is None:
        return matching(problem)
    return matching(problem, settings.temperature)


def _relation(problem: Problem, settings: Settings) -> Learner:
    return relation(problem, settings.features, settings.hidden)


def _r2d2(problem: Problem, settings: Settings) -> Learner:
    return r2d2(problem, settings.penalty, settings.scale)


def _optimizer(kind: str, head_only: bool = False, start: str = "multitask") -> Method:
    """Return the method that meta-trains an optimizer and adapts by it."""
    adaptation = by_rule(kind, head_only)
    return Method("metatrain", adaptation.learner, adaptation, start)


METHODS = {
    "scratch": Method("random", _jointly, ALL_BY_SGD),
    "zero-shot": Method("multitask", _jointly, NOTHING),
    "fine-tuning": Method("multitask", _jointly, ALL_BY_SGD),
    "fine-tuning-adam": Method("multitask", _jointly, ALL_BY_ADAM),
    "head-only": Method("multitask", _jointly, HEAD_BY_SGD),
    "head-only-adam": Method("multitask", _jointly, HEAD_BY_ADAM),
    "ridge": Method("multitask", _jointly, RIDGE),
    "named-ridge": Method("multitask", _jointly, NAMED_RIDGE),
    "logistic": Method("multitask", _jointly, LOGISTIC),
    "named-prototypes": Method("multitask", _jointly, NAMED_PROTOTYPES),
    "soft-k-means": Method("multitask", _jointly, SOFT_K_MEANS),
    "label-spreading": Method("multitask", _jointly, LABEL_SPREADING),
    "vectors+words": Method("multitask", _jointly, VECTORS_AND_WORDS),
    "tf-idf": Method("multitask", _jointly, TF_IDF),
    "map-head": Method("multitask", _jointly, MAP_HEAD),
    "map-all": Method("multitask", _jointly, MAP_ALL),
    "maml": Method("metatrain", _maml, ALL_BY_SGD, needs=("learning_rate", "mode")),
    "first-order": Method("metatrain", _first_order, ALL_BY_SGD, needs=("learning_rate",)),
    "anil": Method("metatrain", _anil, HEAD_BY_SGD, needs=("learning_rate",)),
    "prototypical": Method("metatrain", _prototypical, PROTOTYPES, needs=("temperature",)),
    "rnn": _optimizer("rnn"),
    "lstm": _optimizer("lstm"),
    "hyper": _optimizer("hyper"),
    "lstm-head": _optimizer("lstm", head_only=True),
    "maml+lstm": _optimizer("lstm", start="maml"),
    "meta-sgd": Method("metatrain", _meta_sgd, needs=("learning_rate",)),
    "maml++": Method(
        "metatrain",
        _maml_plus_plus,
        needs=("learning_rate", "mode", "multi_step_until", "second_order_from"),
    ),
    "reptile": Method("metatrain", _reptile, needs=("inner", "batch", "keep_state")),
    "imaml": Method("metatrain", _imaml, needs=("inner", "strength", "cg_steps", "damping")),
    "proto-maml": Method("metatrain", _proto_maml, needs=("learning_rate",)),
    "matching": Method("metatrain", _matching, needs=("temperature",)),
    "relation": Method("metatrain", _relation, needs=("hidden",)),
    "r2d2": Method("metatrain", _r2d2, needs=("penalty", "scale")),
}
"""All methods, keyed by name."""

IN_GUIDE = tuple(name for name, method in METHODS.items() if method.adaptation is not None)
"""Names of the methods that a guide can adapt by."""

META_TRAINED = tuple(name for name in IN_GUIDE if METHODS[name].stage == "metatrain")
"""Names of the meta-trained ones among them."""


def method_named(name: str, among: Sequence[str] = tuple(METHODS)) -> Method:
    """Return a method.

    Args:
        name: name of the method.
        among: the accepted names.

    Raises:
        UnknownMethod: the name is not one of these; the message lists them.
    """
    if name not in among:
        raise UnknownMethod(f"there is no method {name!r}; there are {', '.join(among)}")
    return METHODS[name]


def adaptation_of(name: str) -> Adaptation:
    """Return how a guide adapts by a method.

    Raises:
        UnknownMethod: a guide cannot adapt by it, or there is none of that name.
    """
    adaptation = method_named(name, IN_GUIDE).adaptation
    assert adaptation is not None
    return adaptation
