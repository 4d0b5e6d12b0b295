"""Estimators of the gradient of a learned optimizer's parameters, over one inner problem.

The inner problem continues from one meta-step to the next: an estimator advances it by a window of
`truncation` steps at a time, and draws a new one when its horizon is reached. All estimators use
the same resumable inner loop. They minimise the mean over a window of `transform(loss)` after each
step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree

from metaguide.inner_loop import Carry, FirstOrder, Unrolled, inner_loop
from metaguide.optimizers.damped import damped
from metaguide.optimizers.descent import window
from metaguide.optimizers.rule import Joint, Rule, Theta
from metaguide.types import Metrics, Optimizee, Progress

Horizon = int | Callable[[Progress], Int[Array, ""]]
"""Steps of an inner problem, or progress of meta-training in [0, 1) -> steps: a curriculum."""


def curriculum(first: int, last: int, truncation: int, until: float = 0.5) -> Horizon:
    """Build a horizon that grows by a constant factor, from `first` to `last` steps.

    Args:
        first, last: numbers of steps, both rounded to complete windows.
        truncation: number of steps in a window.
        until: share of meta-training after which the horizon stays at `last`.

    Returns:
        Progress in [0, 1) -> steps.

    Raises:
        ValueError: not 1 ≤ first ≤ last, or `until` is not in (0, 1].

    >>> horizon = curriculum(first=10, last=100, truncation=10)
    >>> [int(horizon(jnp.asarray(progress))) for progress in (0.0, 0.25, 0.5, 0.9)]
    [10, 40, 100, 100]
    """
    if not (1 <= first <= last and 0 < until <= 1):
        raise ValueError(
            f"a curriculum from {first} to {last} steps until {until}: give 1 <= first <= last "
            f"and 0 < until <= 1"
        )

    def horizon(progress: Progress) -> Int[Array, ""]:
        share = jnp.minimum(progress / until, 1.0)
        windows = jnp.ceil(first * (last / first) ** share / truncation - 1e-3)
        return truncation * windows.astype(jnp.int32)

    return horizon


class Particle(NamedTuple):
    """An inner problem in progress.

    Attributes:
        task: the optimizee's draw.
        loops: the inner loop between two steps, or several of the same task.
        age: number of steps since it began.
        memory: other state that the estimator carries.
    """

    task: PyTree
    loops: tuple[Carry, ...]
    age: Int[Array, ""]
    memory: PyTree = ()


class Estimator(NamedTuple):
    """A gradient estimator as pure functions of one inner problem; `vmap` extends it to many.

    Attributes:
        start: (theta, data, key, age) -> particle; `age` is its initial age, so that many particles
            do not all restart in the same meta-step.
        gradient: (theta, data, particle, key, progress) -> ((loss, metrics), gradient, particle).
        ages: tasks -> int32 [tasks], the initial ages of the first particles, spread over the
            windows of the longest horizon. A curriculum undoes this: particles older than its first
            horizon restart in the first meta-step, and then all do together.
        many: like `gradient`, for particles and keys with a leading axis; returns losses and
            metrics with one too, and the mean of the gradients without computing each of them. None
            if `vmap` has to be used instead.
    """

    start: Callable[..., Particle]
    gradient: Callable[..., tuple[tuple[Array, Metrics], Theta, Particle]]
    ages: Callable[[int], Int[Array, " tasks"]]
    many: Callable[..., tuple[tuple[Array, Metrics], Theta, Particle]] | None = None


def truncated(
    rule: Rule,
    optimizee: Optimizee,
    horizon: Horizon,
    truncation: int,
    *,
    curvature: float = 0.0,
    remat: bool = False,
    transform: Callable[[Array], Array] = lambda loss: loss,
    max_loss: float = 1e6,
) -> Estimator:
    """Estimate by back-propagation through a window of steps.

    Biased if the window is shorter than the horizon: an update's effect on losses after the window
    is not seen. With `truncation` equal to the horizon it is the full unroll, and exact.

    Args:
        rule: the rule whose θ is learned.
        optimizee: the functions it is learned on.
        horizon: number of steps after which an inner problem ends.
        truncation: number of steps in a window.
        curvature: per-step bound on the norm of the meta-gradient through the gradient that the
            rule reads (see `damped`): 0 treats it as a constant, as the paper does; infinity is the
            exact gradient of the window, which explodes if an inner problem is chaotic.
        remat: store the loop's state only at every √truncation-th step, and recompute the rest.
        transform: loss -> minimised value, such as `jnp.log(loss + 1e-8)`.
        max_loss: a loss that is above it or not finite, or that transforms to no number, has
            diverged: its window is ignored and the problem ends. If many problems are joined
            (`Rule.joint`) and its backward pass is not finite either, the other problems' windows
            are ignored too.

    Returns:
        The estimator.

    Andrychowicz et al.: Learning to learn by gradient descent by gradient descent, 2016.

    >>> rule = lstm(hidden=4)
    >>> estimator = truncated(rule, quadratics(dim=2), horizon=10, truncation=5)
    >>> init_key, start_key, step_key = jax.random.split(key, 3)
    >>> theta = rule.init(init_key)
    >>> problem = estimator.start(theta, (), start_key, jnp.int32(0))
    >>> step = jax.jit(estimator.gradient)
    >>> (loss, metrics), gradient, problem = step(theta, (), problem, step_key, 0.0)
    >>> int(problem.age)
    5
    """
    mode = Unrolled() if curvature else FirstOrder()
    start = _starter(rule.transform, optimizee, 1)

    def objective(losses: Array) -> tuple[Array, Array]:
        each = _mean(transform, losses, max_loss)
        return each.sum(), each

    def through(
        optimizee: Optimizee,
        place: int,
        bound: Callable[..., optax.GradientTransformation],
        theta: Theta,
        data: Any,
        particle: Particle,
    ) -> tuple[tuple[Array, Metrics], Theta, Particle]:
        """Return the result of `gradient` for a particle with steps left, or for many as one.

        `place` is the position of the losses in the loss function's output.
        """
        (begun,) = particle.loops

        def seen(_: Carry, found: tuple[Array, Any]) -> Array:
            return found[place]

        def unroll(theta: Theta) -> tuple[Array, Carry]:
            optimizer = bound(rule.transform(theta), curvature)
            loop = inner_loop(optimizee.loss, optimizer, mode)._replace(remat=remat)
            carry, losses = window(optimizee, loop, data, particle.task, begun, truncation, seen)
            return losses[1:], carry

        losses, pull, carry = jax.vjp(unroll, theta, has_aux=True)
        bad = _diverged(losses, max_loss, transform)
        weights, value = jax.grad(objective, has_aux=True)(losses)
        (slope,) = pull(jnp.where(bad, 0, weights))
        # A diverged problem may have infinite intermediate values, and 0 times infinity is NaN.
        kept = ~bad.any() | jnp.isfinite(optax.tree.norm(slope))
        slope = jax.tree.map(lambda leaf: jnp.where(kept, leaf / value.size, 0), slope)
        particle = _aged(particle, (carry,), truncation, bad)
        return (value, _metrics(losses, bad, max_loss)), slope, particle

    def gradient(
        theta: Theta, data: Any, particle: Particle, key: Key[Array, ""], progress: Progress
    ) -> tuple[tuple[Array, Metrics], Theta, Particle]:
        particle = _renewed(start, horizon, theta, data, particle, key, progress)
        return through(optimizee, 0, damped, theta, data, particle)

    def many(
        joint: Joint,
        theta: Theta,
        data: Any,
        particles: Particle,
        keys: Key[Array, " problems"],
        progress: Progress,
    ) -> tuple[tuple[Array, Metrics], Theta, Particle]:
        def renewed(particle: Particle, key: Key[Array, ""]) -> Particle:
            return _renewed(start, horizon, theta, data, particle, key, progress)

        particles = jax.vmap(renewed)(particles, keys)
        (loop,) = particles.loops
        loop = loop._replace(optimizer=joint.join(loop.optimizer, loop.params))
        beside, together = _side_by_side(optimizee), particles._replace(loops=(loop,))
        bound = partial(damped, each=jax.vmap)
        seen, slope, together = through(beside, 1, bound, theta, data, together)
        (loop,) = together.loops
        loop = loop._replace(optimizer=joint.part(loop.optimizer, loop.params))
        return seen, slope, together._replace(loops=(loop,))

    jointly = rule.joint and partial(many, rule.joint)
    return Estimator(start, gradient, _ages_over(horizon, truncation), jointly)


def imitation(
    rule: Rule,
    optimizee: Optimizee,
    teacher: optax.GradientTransformation,
    horizon: Horizon,
    truncation: int,
    *,
    max_loss: float = 1e6,
) -> Estimator:
    """Match a rule's updates u to a teacher's: L = mean ‖u − u*‖² / ‖u*‖².

    The inner problem follows the teacher, and both read the gradients along its path, so L does not
    show where u would lead. However, its gradient does not pass through the inner problem and does
    not explode, which makes it a good start for `truncated`.

    Args:
        rule, optimizee, horizon, truncation, max_loss: as in `truncated`.
        teacher: any optax transform; u* are its updates.

    Returns:
        The estimator; the loss is L, and `last` is the last loss of the inner problem.

    Chen et al.: Training Stronger Baselines for Learning to Optimize, 2020.

    >>> rule = lstm(hidden=4)
    >>> teacher = optax.sgd(0.01, momentum=0.9, nesterov=True)
    >>> estimator = imitation(rule, quadratics(dim=2), teacher, horizon=10, truncation=5)
    >>> init_key, start_key, step_key = jax.random.split(key, 3)
    >>> theta = rule.init(init_key)
    >>> problem = estimator.start(theta, (), start_key, jnp.int32(0))
    >>> len(problem.loops)
    1
    """

    def shown(theta: Theta) -> optax.GradientTransformationExtraArgs:
        return _shown(teacher, rule.transform(theta))

    def seen(carry: Carry, found: tuple[Array, Any]) -> tuple[Array, Array]:
        return found[0], carry.optimizer.apart

    start = _starter(shown, optimizee, 1)

    def gradient(
        theta: Theta, data: Any, particle: Particle, key: Key[Array, ""], progress: Progress
    ) -> tuple[tuple[Array, Metrics], Theta, Particle]:
        particle = _renewed(start, horizon, theta, data, particle, key, progress)
        (begun,) = particle.loops

        def objective(theta: Theta) -> tuple[Array, tuple[Carry, Array]]:
            loop = inner_loop(optimizee.loss, shown(theta), FirstOrder())
            carry, (losses, apart) = window(
                optimizee, loop, data, particle.task, begun, truncation, seen
            )
            return apart[1:].mean(), (carry, losses[1:])

        (value, (carry, losses)), slope = jax.value_and_grad(objective, has_aux=True)(theta)
        bad = _diverged(jnp.append(losses, value), max_loss)
        slope = jax.tree.map(lambda leaf: jnp.where(bad, 0, leaf), slope)
        particle = _aged(particle, (carry,), truncation, bad)
        return (_capped(value, max_loss), _metrics(losses, bad, max_loss)), slope, particle

    return Estimator(start, gradient, _ages_over(horizon, truncation))


class _Shown(NamedTuple):
    """The states of a teacher and its pupil, and ‖u − u*‖² / ‖u*‖² of the last step."""

    teacher: PyTree
    pupil: PyTree
    apart: Float[Array, ""]


def _shown(
    teacher: optax.GradientTransformation, pupil: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Return the teacher, which also records how far its pupil's update was from its own."""
    teacher, pupil = map(optax.with_extra_args_support, (teacher, pupil))

    def init(params: PyTree) -> _Shown:
        none = jnp.zeros((), jnp.result_type(*jax.tree.leaves(params)))
        return _Shown(teacher.init(params), pupil.init(params), none)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, _Shown]:
        shown, its = teacher.update(updates, state.teacher, params, **extra)
        tried, own = pupil.update(updates, state.pupil, params, **extra)
        missed = optax.tree.norm(optax.tree.sub(tried, shown), squared=True)
        norm = optax.tree.norm(shown, squared=True)
        return shown, _Shown(its, own, missed / (norm + jnp.finfo(norm.dtype).tiny))

    return optax.GradientTransformationExtraArgs(init, update)


def evolution(
    rule: Rule,
    optimizee: Optimizee,
    horizon: Horizon,
    truncation: int,
    sigma: float,
    *,
    persistent: bool = True,
    transform: Callable[[Array], Array] = lambda loss: loss,
    max_loss: float = 1e6,
) -> Estimator:
    """Estimate by antithetic evolution strategies: g = (L(θ + ε) − L(θ − ε)) / (2σ²) · ξ.

    ε ~ N(0, σ² I) is drawn again for each window. If persistent, two inner problems run in parallel
    under θ + ε and θ − ε, and ξ is the sum of all ε since they began, so the estimate is that of
    the full horizon, without truncation bias. Otherwise ξ = ε, both start a window from the state
    reached under θ itself, and the bias is that of `truncated`. Nothing is differentiated: a window
    costs two (three, if not persistent) times its steps, and memory for one step.

    Args:
        rule, optimizee, horizon, truncation, transform, max_loss: as in `truncated`.
        sigma: σ, the standard deviation of the perturbations of θ.
        persistent: whether perturbations accumulate over windows.

    Returns:
        The estimator.

    Raises:
        ValueError: `sigma` is not above 0.

    Vicol, Metz, Sohl-Dickstein: Unbiased Gradient Estimation in Unrolled Computation Graphs with
    Persistent Evolution Strategies, 2021.

    >>> rule = lstm(hidden=4)
    >>> estimator = evolution(rule, quadratics(dim=2), horizon=10, truncation=5, sigma=0.01)
    >>> init_key, start_key, step_key = jax.random.split(key, 3)
    >>> theta = rule.init(init_key)
    >>> problem = estimator.start(theta, (), start_key, jnp.int32(0))
    >>> len(problem.loops)  # under θ + ε and under θ − ε
    2
    """
    if sigma <= 0:
        raise ValueError(f"sigma is {sigma}; give the deviation of the noise, above 0")
    drawn = _starter(rule.transform, optimizee, 2 if persistent else 1)

    def start(theta: Theta, data: Any, key: Key[Array, ""], age: ArrayLike) -> Particle:
        particle = drawn(theta, data, key, age)
        memory = jax.tree.map(jnp.zeros_like, theta) if persistent else ()
        return particle._replace(memory=memory)

    def gradient(
        theta: Theta, data: Any, particle: Particle, key: Key[Array, ""], progress: Progress
    ) -> tuple[tuple[Array, Metrics], Theta, Particle]:
        draw_key, noise_key = jax.random.split(key)
        particle = _renewed(start, horizon, theta, data, particle, draw_key, progress)
        noise = optax.tree.scale(sigma, optax.tree.random_like(noise_key, theta))

        def losses_of(sign: float, carry: Carry) -> tuple[Carry, Array]:
            moved = rule.transform(optax.tree.add_scale(theta, sign, noise))
            loop = inner_loop(optimizee.loss, moved)
            carry, losses = window(optimizee, loop, data, particle.task, carry, truncation)
            return carry, losses[1:]

        first, last = particle.loops[0], particle.loops[-1]
        (up, above), (down, below) = losses_of(1.0, first), losses_of(-1.0, last)
        summed = optax.tree.add(particle.memory, noise) if persistent else noise
        bad = _diverged(jnp.concatenate([above, below]), max_loss, transform)
        apart = _mean(transform, above, max_loss) - _mean(transform, below, max_loss)
        weight = jnp.where(bad, 0, apart / (2 * sigma**2))
        loops = (up, down) if persistent else (losses_of(0.0, first)[0],)
        particle = _aged(particle, loops, truncation, bad)._replace(
            memory=summed if persistent else particle.memory
        )
        losses = (above + below) / 2
        value = _mean(transform, losses, max_loss)
        return (value, _metrics(losses, bad, max_loss)), optax.tree.scale(weight, summed), particle

    return Estimator(start, gradient, _ages_over(horizon, truncation))


def _ages_over(horizon: Horizon, truncation: int) -> Callable[[int], Int[Array, " tasks"]]:
    """Return (number of tasks) -> ages that are spread over the horizon.

    Raises:
        ValueError: the horizon or the window has no step.
    """
    longest = int(horizon(jnp.ones(()))) if callable(horizon) else horizon
    if longest < 1 or truncation < 1:
        raise ValueError(
            f"horizon is {longest} and truncation {truncation}; give at least one step of each"
        )
    windows = -(-longest // truncation)
    return lambda tasks: jnp.arange(tasks, dtype=jnp.int32) * windows // tasks * truncation


def _side_by_side(optimizee: Optimizee) -> Optimizee:
    """Return problems with a leading axis as one; its loss is their sum, and each one's as well."""

    def batch(data: Any, task: Any, step: Any) -> Any:
        return jax.vmap(optimizee.batch, (None, 0, 0))(data, task, step)

    def loss(params: Any, batch: Any) -> tuple[Array, Array]:
        each = jax.vmap(lambda *given: optimizee.loss(*given)[0])(params, batch)
        return each.sum(), each

    return Optimizee(jax.vmap(optimizee.draw, (None, 0)), batch, loss)


def _starter(
    transform: Callable[[Theta], optax.GradientTransformation], optimizee: Optimizee, count: int
) -> Callable[..., Particle]:
    """Return (theta, data, key, age) -> a particle of `count` loops on one new task."""

    def start(theta: Theta, data: Any, key: Key[Array, ""], age: ArrayLike) -> Particle:
        params, task = optimizee.draw(data, key)
        loop = inner_loop(optimizee.loss, transform(theta)).start(params)
        # Each in its own buffers, since a step may donate them.
        loops = tuple(jax.tree.map(jnp.copy, loop) for _ in range(count))
        return Particle(task, loops, jnp.asarray(age, jnp.int32))

    return start


def _renewed(
    start: Callable[..., Particle],
    horizon: Horizon,
    theta: Theta,
    data: Any,
    particle: Particle,
    key: Key[Array, ""],
    progress: Progress,
) -> Particle:
    """Return the particle, or a new one if it has reached its horizon."""
    end = horizon(progress) if callable(horizon) else horizon
    fresh = start(theta, data, key, 0)
    return jax.tree.map(lambda a, b: jnp.where(particle.age >= end, a, b), fresh, particle)


def _capped(losses: Array, max_loss: float) -> Array:
    """Return the losses, with `max_loss` (no gradient) for those above it or not finite."""
    return jnp.where(jnp.isfinite(losses) & (losses <= max_loss), losses, max_loss)


def _mean(transform: Callable[[Array], Array], losses: Array, max_loss: float) -> Array:
    """Return the mean of `transform`, with its value at `max_loss` where it is not finite."""
    values, most = (
        transform(x) for x in (_capped(losses, max_loss), jnp.full_like(losses, max_loss))
    )
    return jnp.where(jnp.isfinite(values), values, most).mean(0)


def _diverged(
    losses: Array, max_loss: float, transform: Callable[[Array], Array] = lambda x: x
) -> Array:
    """Return which problems have a loss above `max_loss`, or one that transforms to no number."""
    return ~((losses <= max_loss) & jnp.isfinite(losses) & jnp.isfinite(transform(losses))).all(0)


def _aged(particle: Particle, loops: tuple[Carry, ...], steps: int, bad: Array) -> Particle:
    """Return the particle after a window; a diverged one gets the largest age."""
    age = jnp.where(bad, jnp.iinfo(jnp.int32).max // 2, particle.age + steps)
    return particle._replace(loops=loops, age=age.astype(jnp.int32))


def _metrics(losses: Array, bad: Array, max_loss: float) -> Metrics:
    return {"last": _capped(losses[-1], max_loss), "diverged": bad.astype(losses.dtype)}
