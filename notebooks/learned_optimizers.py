# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Learned optimizers
#
# A learned optimizer is an update rule whose parameters θ were themselves trained on many
# optimization problems. Here it is an optax transform like any other. You will use a trained one in
# your own loop, train one from scratch with two estimators of its gradient, write your own rule in
# a dozen lines, and put it into the inner loop of MAML.
#
# In Colab, open it with the badge in the README or with *File > Open notebook*, and set `source`
# below to the address of the repository. It takes two to four minutes on two CPU cores; a GPU is
# used if there is one. Nothing is downloaded after the install.

# %% tags=["parameters"]
# Where to find metaguide if it is not installed: a clone, or the git address of its repository.
# Empty: the clone that contains this notebook.
source = ""  # @param {type:"string"}
preset = "default"  # "tiny" runs every cell in a few minutes and learns nothing
workdir = "runs/learned_optimizers"  # gets the optimizer that is trained here

# %% [markdown]
# Install metaguide if it is missing.

# %%
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path


def is_clone(folder):
    """Whether a folder is a clone of metaguide."""
    try:
        project = tomllib.loads(Path(folder, "pyproject.toml").read_text("utf-8"))["project"]
        return project["name"] == "metaguide"
    except (OSError, ValueError, KeyError, TypeError):
        return False


if not all(importlib.util.find_spec(name) for name in ("metaguide", "experiments")):
    places = [source] if source else ["..", "."]
    found = next(filter(is_clone, [*places, "metaguide-clone"]), "")
    if source and not found:
        found = "metaguide-clone"
        subprocess.run(["git", "clone", "-q", "--depth=1", source, found], check=True)
    if not found:
        raise RuntimeError("metaguide is not installed: say where it is, as `source` above")
    clone = str(Path(found).resolve())
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"{clone}[guide]"], check=True)
    sys.path.insert(0, clone)
    importlib.invalidate_caches()

# %%
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

import metaguide.optimizers
from metaguide.data.sinusoid import wave_sampler, waves
from metaguide.evaluation.evaluate import episode_keys, evaluator
from metaguide.evaluation.metrics import mean_interval
from metaguide.inner_loop import Unrolled
from metaguide.learners import learned, maml
from metaguide.models.mlp import INITIALISERS, MLP
from metaguide.objectives.weighting import fixed
from metaguide.optimizers import coordinatewise, descent, evolution, truncated
from metaguide.problems import regression
from metaguide.problems.optimizees import quadratics
from metaguide.training.episodic import episodic
from metaguide.training.particles import particles
from metaguide.training.step import init_state, make_step
from metaguide.types import TaskDistribution

tiny = preset == "tiny"

# %% [markdown]
# ## A trained optimizer
#
# It takes two lines. The third value returned is the command that trained it.

# %%
rule, theta, command = metaguide.optimizers.pretrained("lstm")
optimizer = rule.transform(theta)

print(f"{rule.name}; {sum(leaf.size for leaf in jax.tree.leaves(theta))} parameters; {command}")

# %% [markdown]
# The problem is one that it was not trained on: a small network on scikit-learn's handwritten
# digits, 8 by 8 pixels. The loop is the usual optax loop. `value=loss` is for rules that read the
# loss ("hyper" is one); the LSTM and Adam ignore it.

# %%
digits = load_digits()
images = jnp.asarray(digits.data / 16, jnp.float32)
labels = jnp.asarray(digits.target, jnp.int32)
known = 1500  # the others are for the test
net = nn.Sequential([nn.Dense(32), nn.tanh, nn.Dense(10)])


def loss_of(params, rows):
    """Cross-entropy of some digits."""
    logits = net.apply(params, images[rows])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()


def trained(optimizer, steps, seeds=3):
    """Train from several starts; return the losses [seeds, steps], and accuracies on the test."""
    optimizer = optax.with_extra_args_support(optimizer)  # Adam takes no value=

    @jax.jit
    def step(params, state, rows):
        loss, gradient = jax.value_and_grad(loss_of)(params, rows)
        updates, state = optimizer.update(gradient, state, params, value=loss)
        return optax.apply_updates(params, updates), state, loss

    losses, accuracies = [], []
    for seed in range(seeds):
        params = net.init(jax.random.key(seed), images[:1])
        state, seen = optimizer.init(params), []
        for rows in np.random.default_rng(seed).integers(known, size=(steps, 64)):
            params, state, loss = step(params, state, rows)
            seen.append(loss)
        losses.append(np.stack(seen))
        answers = net.apply(params, images[known:]).argmax(-1)
        accuracies.append((answers == labels[known:]).mean())
    return np.stack(losses), np.stack(accuracies)


# %%
runs = {"LSTM": trained(optimizer, 30 if tiny else 400)}
for rate in (0.003, 0.01, 0.03, 0.1):
    runs[f"Adam, {rate}"] = trained(optax.adam(rate), 30 if tiny else 400)

for name, (losses, accuracies) in runs.items():
    print(
        f"{name:12} loss of the last 20 steps {losses[:, -20:].mean():.4f}, "
        f"accuracy on the test {accuracies.mean():.3f} (three starts)"
    )

# %%
figure, panel = plt.subplots(figsize=(7, 3.8), layout="constrained")
for name, (losses, _) in runs.items():
    smooth = np.apply_along_axis(np.convolve, 1, losses, np.ones(10) / 10, "valid").mean(0)
    style = {"color": "black", "linewidth": 2} if name == "LSTM" else {"alpha": 0.8}
    panel.plot(np.arange(10, 10 + len(smooth)), smooth, label=name, **style)
panel.set(xlabel="step", ylabel="loss, mean of 10 steps", yscale="log", title="digits")
panel.legend(frameon=False)
plt.show()

# %% [markdown]
# Adam's rate was chosen among four on this problem, while nothing was tuned for the LSTM: a fair
# comparison would tune Adam on other problems, as the next part does. The number of steps that the
# LSTM was trained for is `horizon` in the config of its command; here it takes as many as Adam.
#
# ## Training one
#
# An optimizee is a distribution of functions: here ‖W θ − y‖² in ten dimensions, with new entries
# of W and y drawn for each function. An estimator defines how the gradient of the optimizer's own
# parameters is computed, in windows of 20 steps of a descent that continues from one meta-step to
# the next:
#
# - `truncated` differentiates through the window, and does not see how an update affects the losses
#   after it;
# - `evolution` compares two descents under perturbed parameters and sums the perturbations over all
#   windows (persistent evolution strategies): it is noisier, but without that bias.
#
# `minimised` is the library's training step in a plain loop; everything below uses it. The
# objective is the mean logarithm of the loss.

# %%
functions = quadratics()
short, long = (20, 60) if tiny else (100, 1000)


def minimised(gradient, meta, data, *, steps, learning_rate, carry=()):
    """Take steps of Adam along a gradient that the library estimates; return what was learned."""
    weighting, steps_per_call = fixed({"all": 1.0}), 20
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(learning_rate, steps)),
    )
    step = make_step({"all": gradient}, weighting, optimizer, steps, steps_per_call=steps_per_call)
    state = init_state(meta, weighting, optimizer, jax.random.key(1), {"all": carry})
    for _ in range(steps // steps_per_call):
        state, metrics = step(state, {"all": data})
    assert np.isfinite(metrics["loss"]).all(), "training has diverged"
    return state.params["meta"]


def meta_trained(rule, estimator_of, horizon, *, steps, learning_rate):
    """Train a rule on quadratics; return θ."""
    estimator = estimator_of(rule, functions, horizon, 20, transform=lambda x: jnp.log(x + 1e-8))
    many = particles(estimator, 32)  # 32 descents side by side
    meta = {"rule": rule.init(jax.random.key(0))}
    carry = many.start(meta, (), jax.random.key(2))
    begun = time.perf_counter()
    meta = minimised(
        many, meta, (), steps=20 if tiny else steps, learning_rate=learning_rate, carry=carry
    )
    print(f"{rule.name}: {time.perf_counter() - begun:.0f} s")
    return meta["rule"]


# %% [markdown]
# The rule is the library's smallest: a perceptron for each coordinate that reads the gradient and
# its running means. It is trained with truncated windows on descents of 100 steps, and with
# evolution on descents of 1,000.

# %%
estimators = {
    f"truncated, {short} steps": (truncated, short),
    f"persistent evolution, {long} steps": (partial(evolution, sigma=0.03), long),
}
perceptron = metaguide.optimizers.mlp()
perceptrons = {
    name: meta_trained(perceptron, *how, steps=2000, learning_rate=3e-3)
    for name, how in estimators.items()
}

# %% [markdown]
# All are scored on the same fresh functions. SGD (without momentum and with .9) and Adam get the
# best of 13 rates on validation functions, chosen separately for each horizon.

# %%
problems = 8 if tiny else 100


def scored(optimizer_of, made_of):
    """Return log10 of the losses [optimizers, problems, steps + 1] by split.

    Args:
        optimizer_of: what an optimizer is made of -> the optimizer.
        made_of: several of these in one, with a leading axis.
    """
    keys = {split: episode_keys(0, split, problems) for split in ("validation", "test")}

    @jax.jit
    def losses(made_of, keys):
        def of_one(made_of):
            one = descent(functions, optimizer_of(made_of), long)
            return jax.vmap(lambda key: one((), key))(keys)

        return jax.lax.map(of_one, made_of)

    found = {split: np.asarray(losses(made_of, own)) for split, own in keys.items()}
    return {
        split: np.log10(np.clip(np.nan_to_num(own, nan=1e6), 1e-12, 1e6))
        for split, own in found.items()
    }


def tested(rule, thetas):
    """Return the losses on test functions of a rule with each θ, by its name."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *thetas.values())
    return dict(zip(thetas, scored(rule.transform, stacked)["test"], strict=True))


rates = np.float32([10 ** (third / 3) for third in range(-9, 4)])
tuned = {}
for name, optimizer_of, tries in (
    ("SGD", lambda made_of: optax.sgd(*made_of), [(r, m) for m in (0.0, 0.9) for r in rates]),
    ("Adam", optax.adam, rates),
):
    made_of = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tries)
    found = scored(optimizer_of, made_of)
    for horizon in (short, long):
        best = found["validation"][:, :, horizon].mean(1).argmin()
        tuned[f"{name}, for {horizon} steps"] = found["test"][best]
        values = ", ".join(f"{value:.2g}" for value in np.ravel(tries[best]))
        print(f"{name}, for {horizon} steps: the best is {values}")


def table(results):
    """Print the mean log10 loss after the short and the long horizon, ± half the 95% interval."""
    for name, found in results.items():
        ends = ["{:6.2f} ± {:.2f}".format(*mean_interval(found[:, at])) for at in (short, long)]
        print(f"{name:44}", *ends)


print(f"{'log10 of the loss':44} {short:>6} steps  {long:>6} steps")
table(tuned)
of_perceptrons = tested(perceptron, perceptrons)
table({f"perceptron, {name}": found for name, found in of_perceptrons.items()})

# %% [markdown]
# The last rule is saved and read again: the file holds the rule's name and settings as well as θ.

# %%
folder = Path(workdir)
folder.mkdir(parents=True, exist_ok=True)
path = folder / "optimizer.npz"
*_, last = perceptrons.values()
metaguide.optimizers.save(path, perceptron, last, "notebooks/learned_optimizers.ipynb")
again = metaguide.optimizers.load(path)
print(f"{path}: {again.rule.name}, trained by {again.command}")
assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), last, again.theta))

# %% [markdown]
# ## Your own rule
#
# A rule is a name, `init` (key -> θ) and `transform` (θ -> an optax transform). `coordinatewise`
# builds it from the update of one coordinate. This one is SGD with momentum, v ← σ(m) v + g and
# u = −exp(r) v, where r and m are learned.


# %% tags=["rule"]
def momentum():
    """SGD whose rate and momentum are learned."""

    def init(key):
        return {"rate": jnp.log(jnp.asarray(0.01)), "momentum": jnp.zeros(())}

    def start(shape, dtype):
        return jnp.zeros(shape, dtype)

    def update(theta, gradient, velocity):
        velocity = jax.nn.sigmoid(theta["momentum"]) * velocity + gradient
        return -jnp.exp(theta["rate"]) * velocity, velocity

    return coordinatewise("learned momentum", init, start, update)


# %% [markdown]
# The same code trains and scores it, with truncated windows on long descents too. It learns just
# two numbers, which are easy to read.

# %%
estimators[f"truncated, {long} steps"] = (truncated, long)
own = momentum()
owns = {
    name: meta_trained(own, *how, steps=1000, learning_rate=1e-2)
    for name, how in estimators.items()
}
of_owns = tested(own, owns)

for name, theta in owns.items():
    rate, decay = jnp.exp(theta["rate"]), jax.nn.sigmoid(theta["momentum"])
    print(f"{name:44} rate {rate:.4f}, momentum {decay:.3f}")
print(f"\n{'log10 of the loss':44} {short:>6} steps  {long:>6} steps")
table({f"own rule, {name}": found for name, found in of_owns.items()})


# %%
def curve(found):
    """Return the steps from the first one on, and the mean log10 loss after each."""
    return np.arange(1, long + 1), found.mean(0)[1:]


figure, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
for panel, title, curves in zip(
    panels, ("perceptron", "rule of your own"), (of_perceptrons, of_owns), strict=True
):
    for name, found in tuned.items():
        if f"{long} steps" in name:
            panel.plot(*curve(found), linestyle="--", alpha=0.6, label=name)
    for name, found in curves.items():
        panel.plot(*curve(found), label=name)
    panel.axvline(short, color="grey", linewidth=0.5)
    panel.set(xlabel="step", xscale="log", title=title)
    panel.legend(frameon=False, fontsize="small")
panels[0].set_ylabel("mean log10 loss")
plt.show()

# %% [markdown]
# Both panels have the same hand-made optimizers, tuned for the long horizon; the thin line marks
# the short one. On the right, two curves were trained on long descents: windows, horizon and
# objective are the same, and only the estimator differs. Each is one seed of meta-training; another
# seed changes these curves.
#
# ## Inside MAML
#
# An optax transform also serves as the inner rule of a learner. `learned` meta-trains the
# initialisation and the rule together, here on sine waves with 10 known points; `maml` is the same
# with SGD at a fixed rate, at which your own rule also starts. Both differentiate through all five
# inner steps.

# %%
problem = regression(MLP((40, 40), initialiser="lecun"), INITIALISERS["lecun"])
sines = TaskDistribution(("waves",), waves(), wave_sampler(10, 10), problem)
data = jax.device_put(sines.data)
learners = {
    "MAML": maml(problem, optax.sgd(0.01), steps=5),
    "MAML with your rule": learned(problem, own.init, own.transform, steps=5, mode=Unrolled()),
}
for name, learner in learners.items():
    begun = time.perf_counter()
    gradient = episodic(sines, learner, meta_batch_size=25, shots=(10,))
    meta = learner.init(jax.random.key(0))
    meta = minimised(gradient, meta, data, steps=20 if tiny else 3000, learning_rate=1e-3)
    keys = episode_keys(0, "test", 20 if tiny else 500)
    run = evaluator(sines, {"": lambda rate, learner=learner: learner}, 100).run
    errors = run(meta, data, 0, 10, keys, {"": 0.0})[""]["squared_error"].mean(-1)
    before, after = (mean_interval(errors[step]) for step in (0, -1))
    print(f"{name}: {time.perf_counter() - begun:.0f} s")
    print("    mean squared error {:.3f} ± {:.3f} before,".format(*before), end=" ")
    print("{:.3f} ± {:.3f} after five steps".format(*after))
rate, decay = jnp.exp(meta["rule"]["rate"]), jax.nn.sigmoid(meta["rule"]["momentum"])
print(f"    learned: rate {rate:.4f}, momentum {decay:.3f}")

# %% [markdown]
# MAML's rate is that of its paper and was not tuned, so the gain of the second row may come from
# the rate. `metaguide.optimizers.lstm()` can take the rule's place, and `lambda key: theta` in
# place of `own.init` starts from a trained one.
#
# For real runs, `python -m experiments.learn_optimizer` trains a rule from a config, chooses among
# its checkpoints on validation problems, and saves a file that `metaguide.optimizers.load` reads.
