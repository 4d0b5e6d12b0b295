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
# # Prototype a meta-learner
#
# You will write a learner that the library does not have, in 29 lines and without touching the
# library; meta-train it on sine waves and on the products of a generated shopping world; and
# compare it with MAML, ANIL and prototypical networks on the same test episodes.
#
# The learner is CAVIA (Zintgraf et al.: Fast Context Adaptation via Meta-Learning, 2019). The
# network is learned over all tasks and shared by them. Each task has a few context parameters,
# which start at zero; only they take gradient steps on its support.
#
# In Colab, open it with the badge in the README or with *File > Open notebook*, and set `source`
# below to the address of the repository. It takes two to five minutes on a CPU core; a GPU is used
# if there is one.

# %% tags=["parameters"]
# Where to find metaguide if it is not installed: a clone, or the git address of its repository.
# Empty: the clone that contains this notebook.
source = ""  # @param {type:"string"}
preset = "default"  # "tiny" runs every cell in a few minutes and learns nothing
workdir = "runs/prototype"  # keeps the generated world

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
from IPython.display import Image

from experiments import command, process_setup
from experiments.domain_split import prepare
from experiments.tables.pictures import fits
from metaguide.data.sinusoid import wave_sampler, waves
from metaguide.evaluation.evaluate import episode_keys, evaluator
from metaguide.evaluation.metrics import mean_interval
from metaguide.inner_loop import Unrolled
from metaguide.learners import anil, maml, prototypical
from metaguide.learners.gradient_based import completed, descend, support_loss
from metaguide.models.mlp import INITIALISERS, MLP
from metaguide.objectives.weighting import fixed
from metaguide.problems import regression
from metaguide.training.episodic import episodic
from metaguide.training.step import init_state, make_step
from metaguide.types import TaskDistribution

# %% [markdown]
# ## The learner
#
# A learner defines how a problem is adapted to a support; `completed` adds the rest. CAVIA is
# gradient descent (`descend`, the library's one inner loop) on the parameter group `context`, from
# zeros. `Unrolled()` differentiates through its steps, for the exact second-order meta-gradient.


# %% tags=["learner"]
def cavia(problem, inner, steps, mode=Unrolled()):
    """Learn the network, adapt the group `context` alone, from zeros for each task."""

    def adapt(meta, support, context, key, observe=None):
        params = {**meta["params"], "context": jnp.zeros_like(meta["params"]["context"])}
        loss = support_loss(problem, params, context)
        return descend(loss, inner, mode, params, ("context",), support, steps, observe)

    return completed(problem, adapt)


# %% [markdown]
# It works on any problem that reads a group `context`. A problem is also a few functions, so an
# existing one gets a context by replacing two of them, `init` and `encode`. For the sine waves the
# context is concatenated with the input, as in the paper.


# %% tags=["learner"]
def beside_input(problem, model, size):
    """A regression whose `model` reads `size` context parameters beside x."""

    def init(key):
        model_key, key = jax.random.split(key)
        body = model.init(model_key, jnp.zeros((1, 1 + size)))["params"]
        return {**problem.init(key), "body": body, "context": jnp.zeros(size)}

    def encode(params, batch, context, key):
        beside = jnp.broadcast_to(params["context"], (len(batch["x"]), size))
        x = jnp.concatenate([batch["x"], beside], axis=1)
        return problem.encode(params, {**batch, "x": x}, context, key)

    return problem._replace(init=init, encode=encode, body=(*problem.body, "context"))


# %% [markdown]
# For the products it modulates the features before the head (FiLM, which the paper uses for
# convolutions): f ← f ∘ (1 + cΓ) + cB, where c is the context, and Γ and B are learned over all
# tasks.


# %% tags=["learner"]
def modulated(problem, width, size):
    """A problem whose features, `width` of them, are scaled and shifted by the context."""

    def init(key):
        film_key, key = jax.random.split(key)
        film = jax.random.normal(film_key, (size, 2 * width))
        return {**problem.init(key), "film": film, "context": jnp.zeros(size)}

    def encode(params, batch, context, key):
        encoded = problem.encode(params, batch, context, key)
        scale, shift = jnp.split(params["context"] @ params["film"], 2)
        return {**encoded, "vector": encoded["vector"] * (1 + scale) + shift}

    return problem._replace(init=init, encode=encode, body=(*problem.body, "film", "context"))


# %% [markdown]
# That is all of it: 29 lines including docstrings, not counting blank lines.
#
# ## Training and scoring
#
# The same two functions serve every learner on both benchmarks. One call of the compiled program
# takes `steps_per_call` steps. Test episodes depend only on the seed and their number, so all
# learners get the same ones.


# %%
def meta_trained(
    distribution, learner, optimizer, *, steps, meta_batch_size, shots, steps_per_call, chunk=None
):
    """Return what the learner learns in `steps` steps of `meta_batch_size` episodes each."""
    weighting = fixed({"episodes": 1.0})
    gradient = episodic(
        distribution,
        learner,
        meta_batch_size=meta_batch_size,
        shots=(shots,),
        tasks_per_chunk=chunk,
    )
    step = make_step(
        {"episodes": gradient}, weighting, optimizer, steps, steps_per_call=steps_per_call
    )
    state = init_state(learner.init(jax.random.key(0)), weighting, optimizer, jax.random.key(1))
    data = {"episodes": jax.device_put(distribution.data)}
    for _ in range(steps // steps_per_call):
        state, metrics = step(state, data)
    assert np.isfinite(metrics["loss"]).all(), "training has diverged"
    return state.params["meta"]


def tested(distribution, learner, meta, score, *, shots, episodes, chunk):
    """Return the mean score of each episode of each domain, [steps + 1, episodes]."""
    run = evaluator(distribution, {"": lambda rate: learner}, chunk).run
    keys, data = episode_keys(0, "test", episodes), jax.device_put(distribution.data)
    domains = range(len(distribution.domains))
    scored = [run(meta, data, domain, shots, keys, {"": 0.0})[""] for domain in domains]
    return np.concatenate([score(one).mean(-1) for one in scored], axis=1)


def compared(train, test, methods, score, training, testing, steps):
    """Train and test all methods; return what they learned and their scores, by name."""
    metas, scores = {}, {}
    for name, (problem, learner_of, inner_steps) in methods.items():
        begun = time.perf_counter()
        own, other = (distribution._replace(problem=problem) for distribution in (train, test))
        metas[name] = meta_trained(own, learner_of(inner_steps), **training)
        trained = time.perf_counter()
        scores[name] = tested(other, learner_of(steps), metas[name], score, **testing)
        done = time.perf_counter()
        print(f"{name}: trained {trained - begun:.0f} s, tested {done - trained:.0f} s")
    return metas, scores


def report(scores, steps, baseline="CAVIA"):
    """Print mean ± half of the 95% interval, and the difference to CAVIA's episode by episode."""
    for step in steps:
        print(f"after {step} step" + "s" * (step > 1))
        own = scores[baseline][step]
        for name, all_steps in scores.items():
            found = all_steps[min(step, len(all_steps) - 1)]
            text = "{:22} {:.3f} ± {:.3f}".format(name, *mean_interval(found))
            if name != baseline:
                text += "    less {}'s: {:+.3f} ± {:.3f}".format(
                    baseline, *mean_interval(found - own)
                )
            print("   ", text)


# %% [markdown]
# ## Benchmark 1: sine waves
#
# A task is a wave y = A sin(x − φ) with 10 known points. The networks have two layers of 40 units;
# CAVIA's also reads 4 context parameters next to x. A method is a problem, a learner for a number
# of inner steps, and that number in training. At test all take up to 10 steps.
#
# The inner rates of CAVIA and MAML are those of their papers. ANIL's is the best of .01, .03 and .1
# on validation waves. The initialisation, the same for all, is the best there of the library's
# three. 10,000 steps are a seventh of what `experiments/tables/sinusoid.py` takes.

# %%
reduced = preset == "tiny"
problem = regression(MLP((40, 40), initialiser="lecun"), INITIALISERS["lecun"])
in_context = beside_input(problem, MLP((40, 40), initialiser="lecun"), size=4)
sine_methods = {
    "MAML": (problem, partial(maml, problem, optax.sgd(0.01)), 1),
    "ANIL": (problem, partial(anil, problem, optax.sgd(0.01)), 1),
    "CAVIA": (in_context, partial(cavia, in_context, optax.sgd(1.0)), 1),
}
sines = TaskDistribution(("waves",), waves(), wave_sampler(10, 10), problem)
sine_metas, sine_scores = compared(
    sines,
    sines._replace(sample=wave_sampler(10, 100)),
    sine_methods,
    lambda scored: scored["squared_error"],
    training={
        "optimizer": optax.adam(1e-3),
        "steps": 200 if reduced else 10_000,
        "meta_batch_size": 25,
        "shots": 10,
        "steps_per_call": 100,
    },
    testing={"shots": 10, "episodes": 20 if reduced else 600, "chunk": 100},
    steps=10,
)

# %%
report(sine_scores, (1, 10))

# %% [markdown]
# The plots show three test waves before and after adaptation.


# %%
def fits_of(learner, meta):
    """Return three test waves and what the learner takes them for, step by step."""
    sample, grid = wave_sampler(10, 200), lambda batch: jnp.hstack([batch["x"], batch["y"]])

    def fit(key):
        support, query, _ = sample(waves(), 0, 10, key)
        _, predicted = learner.adapt(
            meta, support, (), key, lambda adapted: learner.predict(adapted, query, ())["y"][:, 0]
        )
        return {
            "fit_support": grid(support),
            "fit_query": grid(query),
            "fit_predicted": predicted,
        }

    return jax.device_get(jax.jit(jax.vmap(fit))(episode_keys(0, "test", 3)))


folder = Path(workdir)
folder.mkdir(parents=True, exist_ok=True)
shown = {name: fits_of(sine_methods[name][1](10), sine_metas[name]) for name in ("MAML", "CAVIA")}
Image(filename=fits(shown, folder / "fits.png"))

# %% [markdown]
# ## Benchmark 2: products of unseen domains
#
# The bazaar is a generated shopping world; nothing is downloaded. A task has products from five
# categories of one domain, with text and picture, 5 examples each. Training draws from seven
# domains, the test from two others. The names of the categories are hidden: otherwise the model
# reads them and can solve the training tasks without looking at the support.
#
# All learners start from random parameters and take the same number of steps. The inner rates were
# chosen on the validation domain, among two for MAML and ANIL and three for CAVIA. CAVIA's search
# was larger: it also covered the number of context parameters, the inner steps and the initial size
# of Γ and B. With a tenth of that size it stays at chance for this many steps.
#
# Any other distribution with classes works as well; for Omniglot take the pictures from
# `metaguide.data.omniglot`, `classification_of_pictures` as the problem, and in `modulated` replace
# `encoded["vector"]` by `encoded`.

# %%
config, _ = command.resolve(
    ["notebook", f"--config.preset={preset}"],
    default="experiments/configs/guide_bazaar.py",
    workdir=workdir,
)
process_setup.enable_compilation_cache()
split = prepare(config, folder)


def without_names(distribution):
    """The distribution with its classes unnamed."""
    return distribution._replace(
        data={**distribution.data, "has_names": np.zeros_like(distribution.data["has_names"])}
    )


train, test = (
    without_names(split.task_distributions(part, shots=5)["classification"])
    for part in ("sources", "held_out")
)
problem = train.problem
in_context = modulated(problem, config.model.width, size=100)
methods = {
    "MAML": (problem, partial(maml, problem, optax.sgd(0.1)), 1),
    "ANIL": (problem, partial(anil, problem, optax.sgd(0.3)), 5),
    "CAVIA": (in_context, partial(cavia, in_context, optax.sgd(1.0)), 2),
    "prototypical networks": (problem, lambda steps: prototypical(problem), 0),
}
_, scores = compared(
    train,
    test,
    methods,
    lambda scored: scored["predicted"] == scored["target"],
    training={
        # Over one vector, which compiles faster than a kernel for each of a hundred leaves.
        "optimizer": optax.flatten(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))),
        "steps": 10 if reduced else 200,
        "meta_batch_size": 2 if reduced else 4,
        "shots": 5,
        "steps_per_call": 10,
        "chunk": config.metatrain.tasks_per_chunk or None,
    },
    testing={
        "shots": 5,
        "episodes": 4 if reduced else 200,
        "chunk": config.adapt.chunk["classification"],
    },
    steps=5,
)

# %%
report(scores, (5,))

# %% [markdown]
# ## Both benchmarks
#
# The plots show means over the test episodes and their 95% intervals, before the first adaptation
# step and after each step. Prototypical networks take no steps.

# %%
figure, panels = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
for panel, found in zip(panels, (sine_scores, scores), strict=True):
    for colour, (name, all_steps) in enumerate(found.items()):
        means, halves = np.transpose([mean_interval(one) for one in all_steps])
        if len(means) > 1:
            steps = range(len(means))
            panel.errorbar(steps, means, halves, color=f"C{colour}", label=name, capsize=2)
        else:
            panel.axhline(means[0], color=f"C{colour}", label=name)
            panel.axhspan(means[0] - halves[0], means[0] + halves[0], color=f"C{colour}", alpha=0.2)
    panel.set_xlabel("adaptation steps")
    panel.legend(frameon=False)
panels[0].set(title="sine waves, 10 points", ylabel="mean squared error", yscale="log")
panels[1].set(title="products of unseen domains, 5-way 5-shot", ylabel="accuracy")
plt.show()

# %% [markdown]
# ## Results
#
# With the default preset on a CPU and one training seed:
#
# | | sine waves, MSE after 1 step | after 10 steps | products, accuracy after 5 steps |
# |---|---|---|---|
# | MAML | .595 ± .048 | .196 ± .025 | .786 ± .012 |
# | ANIL | .964 ± .076 | 1.349 ± 1.430 | .798 ± .012 |
# | CAVIA | **.229** ± .024 | **.030** ± .003 | .639 ± .014 |
# | prototypical networks | | | **.841** ± .010 |
#
# On sine waves CAVIA is far ahead: a wave has two unknowns, and the context has room for both. It
# keeps improving over more steps than it was trained with. So does MAML; ANIL diverges on a few of
# the 600 waves, which dominate its mean and its interval after 10 steps.
#
# On the products CAVIA is last, by .14 or more. Everything it knows about a task must pass through
# 100 numbers that scale and shift features, from which one fixed head has to separate five classes
# in any order; the others fit a head to the support. More steps do not help: with 1,000 instead of
# 200 its training loss falls to .03, but its accuracy on the validation domain does not rise. This
# is a finding about this small design, not about CAVIA as its authors tuned it on other pictures.
#
# The intervals are over episodes. They do not account for products that recur across episodes, or
# for the effect of another training seed.
