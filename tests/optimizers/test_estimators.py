"""Estimators of a rule's gradient: exact where they should be, biased where they say so."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from metaguide.optimizers.estimators import evolution, imitation, truncated
from metaguide.optimizers.recurrent import lstm
from metaguide.optimizers.rule import Rule
from metaguide.types import Optimizee

DIM = 3


def draw(data, key):
    one, two, three = jax.random.split(key, 3)
    task = {"w": jax.random.normal(one, (DIM, DIM)), "y": jax.random.normal(two, (DIM,))}
    return {"x": jax.random.normal(three, (DIM,))}, task


def loss(params, task):
    return jnp.square(task["w"] @ params["x"] - task["y"]).mean(), ()


QUADRATICS = Optimizee(draw, lambda data, task, step: task, loss)


def scalar_rule():
    """SGD with momentum; θ is the two logarithms of rate and 1 − decay."""

    def transform(theta):
        return optax.with_extra_args_support(
            optax.chain(
                optax.trace(1 - jnp.exp(theta["decay"])),
                optax.scale_by_learning_rate(jnp.exp(theta["rate"])),
            )
        )

    return Rule("momentum", lambda key: {"rate": jnp.log(0.1), "decay": jnp.log(0.3)}, transform)


def whole(rule, theta, key, steps, second_order=True):
    """Mean loss after each of the first steps, by a plain loop."""
    params, task = draw((), key)
    optimizer, total = rule.transform(theta), 0.0
    state = optimizer.init(params)
    for _ in range(steps):
        gradient = jax.grad(lambda params: loss(params, task)[0])(params)
        gradient = gradient if second_order else jax.lax.stop_gradient(gradient)
        updates, state = optimizer.update(gradient, state, params, value=0.0)
        params = optax.apply_updates(params, updates)
        total += loss(params, task)[0] / steps
    return total


@pytest.mark.slow
def test_the_full_unroll_is_exact():
    """Faults: a step's loss is left out or counted twice, the gradient that the rule reads is
    differentiated, back-propagation through the loop is wrong (finite differences, float64)."""
    with jax.enable_x64(True):
        rule = lstm(2, 1)
        theta = jax.tree.map(lambda a: 3 * a.astype(jnp.float64), rule.init(jax.random.key(0)))
        estimator, key = truncated(rule, QUADRATICS, 6, 6), jax.random.key(1)
        particle = estimator.start(theta, (), key, 0)
        (value, metrics), slope, after = jax.jit(estimator.gradient)(theta, (), particle, key, 0.0)
        expected, exact = jax.value_and_grad(lambda theta: whole(rule, theta, key, 6, False))(theta)
        np.testing.assert_allclose(value, expected, rtol=1e-10)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), slope, exact)
        full = truncated(rule, QUADRATICS, 6, 6, curvature=np.inf)
        _, slope, _ = full.gradient(theta, (), particle, key, 0.0)
        flat, unravel = ravel_pytree(theta)
        towards = jnp.sin(jnp.arange(1.0, flat.size + 1))

        def along(t):
            return full.gradient(unravel(flat + t * towards), (), particle, key, 0.0)[0][0]

        by_difference = (along(1e-5) - along(-1e-5)) / 2e-5
        found = ravel_pytree(slope)[0] @ towards
        np.testing.assert_allclose(found, by_difference, rtol=1e-6)
        assert after.age == 6 and metrics["diverged"] == 0


HORIZON, WINDOW, DRAWS = 12, 3, 4000


def over_windows(estimator, theta, key, draws):
    """Mean over an inner problem's windows of the estimates, for as many draws of the noise."""

    def one(noise_key):
        def window(particle, noise_key):
            _, slope, particle = estimator.gradient(theta, (), particle, noise_key, 0.0)
            return particle, ravel_pytree(slope)[0]

        particle = estimator.start(theta, (), key, 0)
        keys = jax.random.split(noise_key, HORIZON // WINDOW)
        return jax.lax.scan(window, particle, keys)[1].mean(0)

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(7), draws)))


def off_by(found, exact):
    """How many standard errors a mean over draws is off, the larger of both parameters."""
    error = found.std(0) / len(found) ** 0.5
    return float(abs((found.mean(0) - exact) / error).max())


@pytest.mark.slow
def test_persistent_strategies_are_unbiased_where_truncation_is_not():
    """Faults: perturbations do not add up, or are not forgotten with the problem; both sides go on
    from one state; the scale of the estimate; truncated estimates are the whole by chance."""
    rule, key = scalar_rule(), jax.random.key(3)
    theta = rule.init(key)
    exact = ravel_pytree(jax.grad(lambda theta: whole(rule, theta, key, HORIZON))(theta))[0]
    windows = truncated(rule, QUADRATICS, HORIZON, WINDOW, curvature=np.inf)
    cut = over_windows(windows, theta, key, 1)[0]
    assert np.linalg.norm(cut - exact) > 0.2 * np.linalg.norm(exact)
    es = lambda **how: evolution(rule, QUADRATICS, HORIZON, WINDOW, 0.02, **how)  # noqa: E731
    assert off_by(over_windows(es(), theta, key, DRAWS), exact) < 4
    short = over_windows(es(persistent=False), theta, key, DRAWS)
    assert off_by(short, cut) < 4 and off_by(short, exact) > 8


def test_a_particle_may_be_donated():
    """Fault: both of its loops are the same arrays, which cannot be donated twice."""
    rule, key = scalar_rule(), jax.random.key(3)
    estimator = evolution(rule, QUADRATICS, HORIZON, WINDOW, 0.02)
    particle = estimator.start(rule.init(key), (), key, 0)
    step = jax.jit(estimator.gradient, donate_argnums=2)
    assert step(rule.init(key), (), particle, key, 0.0)[2].age == WINDOW


@pytest.mark.slow
def test_an_inner_problem_ends_at_its_horizon_and_begins_anew():
    """Faults: it goes on for ever, begins anew a window too early, keeps the sum of perturbations
    or the optimizer's state; the curriculum is not asked; the same problem is drawn again."""
    rule = scalar_rule()
    theta = rule.init(jax.random.key(0))
    estimator = evolution(
        rule, QUADRATICS, lambda progress: jnp.where(progress < 0.5, 6, 9), 3, 0.1
    )
    particle, ages, tasks = estimator.start(theta, (), jax.random.key(0), 3), [], []
    gradient = jax.jit(estimator.gradient)
    for step in range(8):
        key, progress = jax.random.key(step), jnp.float32(step / 8)
        _, _, particle = gradient(theta, (), particle, key, progress)
        ages.append(int(particle.age))
        tasks.append(float(particle.task["y"][0]))
        if ages[-1] == 3:
            assert all(loop.step == 3 for loop in particle.loops)
            noise = jax.random.split(key)[1]
            fresh = optax.tree.scale(0.1, optax.tree.random_like(noise, theta))
            np.testing.assert_allclose(particle.memory["rate"], fresh["rate"], rtol=1e-6)
    assert ages == [6, 3, 6, 3, 6, 9, 3, 6]
    assert len(set(tasks)) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "rate", [pytest.param(1e6, id="at once"), pytest.param(2.0, id="by steps")]
)
@pytest.mark.parametrize("kind", ["truncated", "evolution"])
def test_what_diverges_counts_for_nothing_and_ends(kind, rate):
    """Faults: one inner problem that diverges makes the gradient NaN, is not counted, counts with
    the losses before it did, or goes on from where it is."""
    rule = scalar_rule()
    theta = {"rate": jnp.log(rate), "decay": jnp.log(0.3)}
    make = {
        "truncated": lambda: truncated(rule, QUADRATICS, 40, 8),
        "evolution": lambda: evolution(rule, QUADRATICS, 40, 8, 0.01),
    }
    estimator = make[kind]()
    particle = estimator.start(theta, (), jax.random.key(0), 0)
    key = jax.random.key(1)
    (value, metrics), slope, particle = estimator.gradient(theta, (), particle, key, 0.0)
    assert (value == 1e6) == (rate == 1e6)
    assert np.isfinite(value) and metrics["diverged"] == 1 and metrics["last"] == 1e6
    assert optax.tree.norm(slope) == 0
    _, _, particle = estimator.gradient(rule.init(key), (), particle, key, 0.0)
    assert particle.age == 8 and np.isfinite(particle.loops[0].params["x"]).all()


@pytest.mark.slow
def test_a_bound_on_curvature_lies_between_first_order_and_exact():
    """Faults: the bound is not passed on, or only whether there is one."""
    rule, key = scalar_rule(), jax.random.key(3)
    theta, found = rule.init(key), {}
    for curvature in (0.0, 0.3, 1e6, np.inf):
        estimator = truncated(rule, QUADRATICS, 6, 6, curvature=curvature)
        particle = estimator.start(theta, (), key, 0)
        slope = estimator.gradient(theta, (), particle, key, 0.0)[1]
        found[curvature] = np.asarray(ravel_pytree(slope)[0])
    np.testing.assert_allclose(found[1e6], found[np.inf], rtol=1e-5)
    for end in (0.0, np.inf):
        assert abs(found[0.3] / found[end] - 1).max() > 0.1


def taught(theta, key, steps):
    """Mean of ‖u − u*‖² / ‖u*‖² over the first steps of the teacher's way, by a plain loop."""
    params, task = draw((), key)
    pupil = scalar_rule().transform(theta)
    own, its, total = pupil.init(params), TEACHER.init(params), 0.0
    for _ in range(steps):
        gradient = jax.grad(lambda params: loss(params, task)[0])(params)
        tried, own = pupil.update(gradient, own, params)
        shown, its = TEACHER.update(gradient, its, params)
        total += (jnp.square(tried["x"] - shown["x"]).sum() / jnp.square(shown["x"]).sum()) / steps
        params = optax.apply_updates(params, shown)
    return total, params


TEACHER = optax.sgd(0.2, momentum=0.5)


@pytest.mark.slow
def test_imitation_is_of_the_teachers_updates_on_its_way():
    """Faults: the problem goes the pupil's way, a step before the first or one twice, what either
    remembers is lost between windows, the loss is not relative, its gradient is another."""
    with jax.enable_x64(True):
        rule, key = scalar_rule(), jax.random.key(3)
        theta = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), rule.init(key))
        estimator = imitation(rule, QUADRATICS, TEACHER, 6, 3)
        particle = estimator.start(theta, (), key, 0)
        (first, _), _, particle = estimator.gradient(theta, (), particle, key, 0.0)
        (second, metrics), _, particle = estimator.gradient(theta, (), particle, key, 0.0)
        expected, params = taught(theta, key, 6)
        np.testing.assert_allclose((first + second) / 2, expected, rtol=1e-10)
        np.testing.assert_allclose(particle.loops[0].params["x"], params["x"], rtol=1e-10)
        np.testing.assert_allclose(metrics["last"], loss(params, particle.task)[0], rtol=1e-10)
        whole = imitation(rule, QUADRATICS, TEACHER, 6, 6)
        _, slope, _ = whole.gradient(theta, (), whole.start(theta, (), key, 0), key, 0.0)
        for name in theta:
            up, down = (taught(theta | {name: theta[name] + h}, key, 6)[0] for h in (1e-6, -1e-6))
            np.testing.assert_allclose(slope[name], (up - down) / 2e-6, rtol=1e-5)


@pytest.mark.slow
def test_who_moves_as_the_teacher_has_nothing_to_learn():
    """Faults: teacher and pupil are the wrong way round, or do not read the same gradients; a
    teacher that stands still makes the loss no number."""
    rule, key = scalar_rule(), jax.random.key(1)
    same = {"rate": jnp.log(0.2), "decay": jnp.log(0.5)}
    for teacher in (TEACHER, optax.set_to_zero()):
        estimator = imitation(rule, QUADRATICS, teacher, 4, 4)
        theta = same if teacher is TEACHER else {"rate": jnp.log(1e-30), "decay": jnp.log(0.5)}
        particle = estimator.start(theta, (), key, 0)
        (value, metrics), slope, _ = estimator.gradient(theta, (), particle, key, 0.0)
        np.testing.assert_allclose(value, 0, atol=1e-10)
        assert optax.tree.norm(slope) < 1e-5 and metrics["diverged"] == 0


@pytest.mark.parametrize("who", ["teacher", "pupil"])
def test_a_lesson_that_diverges_counts_for_nothing_and_ends(who):
    """Faults: its gradient or its loss is no number, it is not counted, or it goes on."""
    rule, key = scalar_rule(), jax.random.key(1)
    theta = {"rate": jnp.log(1e30 if who == "pupil" else 0.1), "decay": jnp.log(0.3)}
    teacher = optax.sgd(1e6 if who == "teacher" else 0.1)
    estimator = imitation(rule, QUADRATICS, teacher, 40, 8)
    particle = estimator.start(theta, (), key, 0)
    (value, metrics), slope, particle = estimator.gradient(theta, (), particle, key, 0.0)
    assert np.isfinite(value) and metrics["diverged"] == 1 and optax.tree.norm(slope) == 0
    (loop,) = estimator.gradient(theta, (), particle, key, 0.0)[2].loops
    assert loop.step == 8


@pytest.mark.slow
def test_rematerialisation_changes_nothing():
    """Fault: the losses of a segment are another's."""
    rule = lstm(2, 1)
    theta, key = rule.init(jax.random.key(0)), jax.random.key(1)
    found = []
    for remat in (False, True):
        estimator = truncated(rule, QUADRATICS, 7, 7, remat=remat)
        particle = estimator.start(theta, (), key, 0)
        found.append(jax.jit(estimator.gradient)(theta, (), particle, key, 0.0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["truncated", "evolution"])
def test_a_loss_that_has_no_logarithm_counts_for_nothing(kind):
    """Faults: a loss of exactly 0, or one without a lower bound, makes the gradient NaN or
    infinite, or is not counted as diverged."""
    rule = scalar_rule()
    theta = {"rate": jnp.log(0.5), "decay": jnp.log(0.3)}

    def of_loss(loss):
        return QUADRATICS._replace(loss=lambda params, task: (loss(params["x"]), ()))

    solved, falling = of_loss(lambda x: 0 * x.sum()), of_loss(lambda x: -1e30 * (x**4).sum())
    for functions, of in ((solved, jnp.log), (falling, lambda loss: loss)):
        given = rule, functions, 40, 8
        estimator = (
            truncated(*given, transform=of)
            if kind == "truncated"
            else evolution(*given, 0.01, transform=of)
        )
        particle = estimator.start(theta, (), jax.random.key(0), 0)
        given = theta, (), particle, jax.random.key(1), 0.0
        (value, metrics), slope, _ = estimator.gradient(*given)
        assert np.isfinite(value) and metrics["diverged"] == 1 and np.isfinite(metrics["last"])
        assert optax.tree.norm(slope) == 0


def test_an_estimator_without_steps_or_noise_is_an_error():
    """Fault: a division by zero, or a gradient that is NaN, instead of one clear error."""
    rule = scalar_rule()
    for build, words in (
        (lambda: truncated(rule, QUADRATICS, 0, 8), "horizon is 0 and truncation 8"),
        (lambda: truncated(rule, QUADRATICS, 40, 0), "truncation 0; give at least one step"),
        (lambda: evolution(rule, QUADRATICS, 40, 8, 0.0), "sigma is 0.0; give the deviation"),
    ):
        with pytest.raises(ValueError, match=words):
            build()


@pytest.mark.slow
def test_a_wrapped_rule_learns_what_it_is_wrapped_in():
    """Faults: many problems are clipped as one; the loss does not reach the rule within; θ of the
    plain rule is taken for one of the wrapped rule."""
    plain = lstm(hidden=3, scale=1.0)

    def clip(rule):
        return optax.chain(optax.clip_by_global_norm(1e-3), rule)

    rule = plain.wrapped(clip, "clipped lstm")
    assert rule.joint is None and plain.joint and rule.name.startswith("clipped lstm(hidden=3")
    theta = rule.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 3)

    def slopes(rule):
        estimator = truncated(rule, QUADRATICS, 8, 4)
        return [
            estimator.gradient(theta, (), estimator.start(theta, (), key, 0), key, 0.0)[1]
            for key in keys
        ]

    assert truncated(rule, QUADRATICS, 8, 4).many is None
    wrapped, bare = slopes(rule), slopes(plain)
    apart = [optax.tree.norm(optax.tree.sub(*two)) for two in zip(wrapped, bare, strict=True)]
    assert min(map(float, apart)) > 1e-4
