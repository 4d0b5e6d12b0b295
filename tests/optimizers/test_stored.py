"""Trained optimizers as files: what was saved comes back, and what is not it is one clear error."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from metaguide.optimizers import Rule, StoredError, load, pretrained, rule_of, save
from metaguide.optimizers.stored import FILE, RULES, SHIPPED

SETTINGS = {
    "lstm": {"hidden": 3, "layers": 1, "p": None},
    "rnn": {"hidden": 2, "scale": 0.5},
    "hyper": {"hidden": 4, "inner": 2},
    "mlp": {"hidden": 2},
}


def stored(path, **changes):
    """Write an mlp with changes in what it says of itself; a change to None leaves it out."""
    rule = rule_of("mlp", SETTINGS["mlp"])
    save(path, rule, rule.init(jax.random.key(0)), "made by hand")
    if not changes:
        return path
    with np.load(path) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    about = json.loads(str(found.pop("about"))) | changes
    about = {name: value for name, value in about.items() if value is not None}
    np.savez(path, about=json.dumps(about), **found)
    return path


@pytest.mark.slow
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(list(RULES)), st.integers(0, 99))
def test_what_is_saved_is_loaded(tmp_path, kind, seed):
    """Faults: leaves come back in another order, the rule at other settings, or the command of
    another run; the work folder of a run is not read."""
    rule = rule_of(kind, SETTINGS[kind])
    theta = rule.init(jax.random.key(seed))
    save(tmp_path / FILE, rule, theta, f"command {seed}")
    for path in (tmp_path, str(tmp_path / FILE)):
        found, again, command = load(path, kind)
        assert (found.name, command) == (rule.name, f"command {seed}")
        jax.tree.map(np.testing.assert_array_equal, again, theta)
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 0}, "of version 0, and this is 1; train it anew"),
        ({"kind": "lstm"}, "lstm has no setting|theta is of another rule"),
        ({"kind": "adam"}, "there is no rule 'adam'; there are lstm, rnn, hyper, mlp"),
        ({"settings": {"hidden": 3}}, r"theta is of another rule than mlp\(hidden=3"),
        ({"settings": {"width": 3}}, "mlp has no setting 'width'; it has hidden, scale"),
        ({"settings": None}, "damaged one"),
    ],
)
def test_a_theta_of_another_rule_or_version_is_refused(tmp_path, changes, message):
    """Faults: a KeyError, jax's error about shapes, or a rule with another one's weights."""
    path = stored(tmp_path / "a.npz", **changes)
    with pytest.raises(StoredError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


def test_another_kind_than_asked_for_is_refused(tmp_path):
    """Fault: a run's folder of another rule is taken for the one that was asked for."""
    path = stored(tmp_path / "a.npz")
    with pytest.raises(
        StoredError, match=r"a trained mlp\(hidden=2, scale=0.01\), not a trained lstm"
    ):
        load(path, "lstm")
    with pytest.raises(StoredError, match=r"not a trained mlp\(hidden=3, scale=0.01\)"):
        load(path, rule_of("mlp", {"hidden": 3}))


def test_a_rule_of_ones_own_is_kept_too(tmp_path):
    """Faults: it cannot be saved, or is read as another rule, or without saying which one."""
    rule = Rule("my rule", lambda key: {"rate": np.float32(0.1)}, optax.sgd, {"width": 3})
    save(tmp_path / "a.npz", rule, {"rate": np.float32(0.3)}, "made by hand")
    found, theta, _ = load(tmp_path / "a.npz", rule)
    assert found is rule and theta["rate"] == np.float32(0.3)
    with pytest.raises(StoredError, match="there is no rule 'my rule'"):
        load(tmp_path / "a.npz")
    with pytest.raises(StoredError, match=r"my rule\(width=3\), not a trained my rule\(width=4\)"):
        load(tmp_path / "a.npz", rule._replace(settings={"width": 4}))


def test_a_damaged_or_missing_file_is_one_clear_error(tmp_path):
    """Faults: numpy's or zip's error, which does not say which file and what to do."""
    path = stored(tmp_path / "a.npz")
    whole = path.read_bytes()
    middle = len(whole) // 2
    spoiled = whole[:middle] + b"\0\0\0\0" + whole[middle + 4 :]
    for content in (whole[:-30], b"text", b"", spoiled):
        path.write_bytes(content)
        with pytest.raises(StoredError, match="a.npz: no trained optimizer, or a damaged one"):
            load(path)
    with pytest.raises(StoredError, match="there is no trained optimizer; train one first"):
        load(tmp_path / "b.npz")
    with pytest.raises(StoredError, match="there is no trained optimizer"):
        load(tmp_path)


def test_a_theta_that_does_not_fit_is_not_saved(tmp_path):
    """Fault: the file is written, and its reader pays."""
    theta = rule_of("mlp", {"hidden": 3}).init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"theta is of another rule than mlp\(hidden=2, scale=0"):
        save(tmp_path / "a.npz", rule_of("mlp", {"hidden": 2}), theta, "")
    rule = rule_of("mlp", {"hidden": 3})
    for changed in (lambda x: x.astype(jnp.bfloat16), lambda x: jnp.full_like(x, jnp.nan)):
        with pytest.raises(ValueError, match="has to be float32 and finite"):
            save(tmp_path / "a.npz", rule, jax.tree.map(changed, theta), "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_shipped_optimizers_minimise():
    """Faults: a file is left out of the package, of another version, or trained to no use; they
    are more than a few hundred kB; the command that made one is lost."""
    assert sorted(file.stem for file in SHIPPED.glob("*.npz")) == sorted(RULES)
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 300_000
    for kind in RULES:
        rule, theta, command = pretrained(kind)
        assert command.startswith("python -m experiments.")
        optimizer = optax.chain(optax.clip_by_global_norm(10.0), rule.transform(theta))
        params = {"x": np.full((4, 5), 2.0, np.float32), "y": np.float32(-1.0)}

        def loss(params):
            return optax.tree.norm(params, squared=True)

        @jax.jit
        def descend(params):
            def step(carry, _):
                params, state = carry
                value, slope = jax.value_and_grad(loss)(params)
                updates, state = optimizer.update(slope, state, params, value=value)
                return (optax.apply_updates(params, updates), state), value

            return jax.lax.scan(step, (params, optimizer.init(params)), length=100)[1]

        losses = descend(params)
        assert losses[-1] < 0.1 * losses[0], kind


def test_unknown_names_are_one_clear_error():
    """Fault: a KeyError or a FileNotFoundError."""
    with pytest.raises(StoredError, match="no trained optimizer 'adam' here; there are"):
        pretrained("adam")
    with pytest.raises(ValueError, match="there is no rule 'gru'"):
        rule_of("gru", {})


@pytest.mark.slow
def test_the_default_holds_where_a_user_tries_it_first():
    """Fault: the first optimizer that is loaded diverges, or stops, on two layers of rectified
    units and handwritten digits."""
    x, label = load_digits(return_X_y=True)
    x, label = jnp.asarray(x / 16, jnp.float32), jnp.asarray(label)
    sizes = [(64, 64), (64, 64), (64, 10)]

    def start(key):
        keys = jax.random.split(key, 3)
        return [
            {"w": jax.random.normal(k, size) * (2 / size[0]) ** 0.5, "b": jnp.zeros(size[1])}
            for k, size in zip(keys, sizes, strict=True)
        ]

    def loss(params, rows):
        hidden = x[rows]
        for layer in params[:-1]:
            hidden = jax.nn.relu(hidden @ layer["w"] + layer["b"])
        logits = hidden @ params[-1]["w"] + params[-1]["b"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, label[rows]).mean()

    rule, theta, _ = pretrained()
    optimizer = rule.transform(theta)

    def train(key):
        params = start(key)

        def step(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (128,), 0, len(x))
            value, slope = jax.value_and_grad(loss)(params, rows)
            updates, state = optimizer.update(slope, state, params, value=value)
            return (optax.apply_updates(params, updates), state), value

        begun = params, optimizer.init(params)
        return jax.lax.scan(step, begun, jax.random.split(key, 1500))[1]

    values = jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(0), 3))
    assert (values[:, -50:].mean(1) < 0.01).all()


@pytest.mark.parametrize("name", ["lstm", "rnn", "mlp"])
def test_one_that_does_not_hold_elsewhere_says_so(name):
    """Fault: where an optimizer fails stands far from where it is loaded."""
    with pytest.warns(UserWarning, match=rf"pretrained\('{name}'\) was trained on 100 steps"):
        pretrained(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pretrained().rule.kind == "hyper"


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(RULES))
def test_64_bits_change_nothing_of_a_stored_rule(tmp_path, kind):
    """Faults: no trained rule loads with `jax_enable_x64`, or what is saved with it is of other
    dtypes without it; weights of 32 bits cannot update parameters of 64."""
    with jax.enable_x64(True), warnings.catch_warnings(action="ignore"):
        rule, theta, _ = pretrained(kind)
        save(str(tmp_path / FILE), rule, jax.tree.map(np.float64, theta), "")
        params = {"w": jnp.ones(3, jnp.float64)}
        optimizer = optax.with_extra_args_support(rule.transform(theta))
        updates, _ = optimizer.update(params, optimizer.init(params), params, value=1.0)
        assert updates["w"].dtype == np.float64 and np.isfinite(updates["w"]).all()
    rule, again, _ = load(tmp_path, rule)
    assert {leaf.dtype for leaf in jax.tree.leaves(again)} == {np.dtype(np.float32)}
    jax.tree.map(np.testing.assert_array_equal, again, theta)


def test_settings_are_the_same_however_they_are_written(tmp_path):
    """Faults: a whole number is another setting than the same float; a NumPy number cannot be
    saved."""
    rule = rule_of("mlp", {"hidden": 2, "scale": 1.0})
    written = rule._replace(settings={"hidden": np.int64(2), "scale": np.float32(1)})
    save(tmp_path / FILE, written, rule.init(jax.random.key(0)), "")
    load(tmp_path, rule)
    load(tmp_path, rule._replace(settings={"hidden": 2, "scale": 1}))
    with pytest.raises(StoredError, match="not a trained mlp"):
        load(tmp_path, rule_of("mlp", {"hidden": 2, "scale": 0.25}))
