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
# # The guide
#
# A guide is pre-trained and trained on some shopping domains, then adapts to a domain that it has
# never seen from a handful of examples. This notebook makes a small one and asks it questions.
#
# In Colab, open it with the badge in the README or with *File > Open notebook*, and set `source`
# below to the address of the repository. It takes a few minutes on two CPU cores; a GPU is used if
# there is one.

# %% tags=["parameters"]
# Where to find metaguide if it is not installed: a clone, or the git address of its repository.
# Empty: the clone that contains this notebook.
source = ""  # @param {type:"string"}
preset = "default"  # "tiny" runs every cell in about a minute and learns nothing
workdir = "runs/notebook"  # started again with the same folder, training resumes where it stopped

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
from functools import partial

import matplotlib.pyplot as plt
import optax

import metaguide
from experiments import command, process_setup
from experiments.domain_split import prepare
from experiments.multitask import multitask_stage
from experiments.pretrain import pretraining_stage
from experiments.stages import random_start, train_stage
from metaguide import inner_loop
from metaguide.data.histories import histories
from metaguide.evaluation.evaluate import episode_keys, evaluator
from metaguide.evaluation.metrics import mean_interval
from metaguide.inner_loop import FirstOrder
from metaguide.learners import fine_tuning
from metaguide.learners.gradient_based import whole_loss

# %% [markdown]
# ## The bazaar
#
# The bazaar is a generated shopping world: domains with products, reviews, questions and
# interactions, written to disk as a catalogue, just like your own data would be. The config says
# which domains are sources and which are held out. A flag overrides a field, as on the command
# line.

# %%
config, folder = command.resolve(
    ["notebook", f"--config.preset={preset}", f"--workdir={workdir}"],
    default="experiments/configs/guide_bazaar.py",
    workdir=workdir,
)
process_setup.enable_compilation_cache()
split = prepare(config, folder)
for part in ("sources", "validation", "held_out"):
    print(part, *(domain.name for domain in getattr(split, part)), sep="  ")

# %% [markdown]
# Here are products of a domain that no training stage will see.

# %%
domain = split.held_out[0]
shown = domain.products[:: max(1, len(domain.products) // 8)][:8]
figure, axes = plt.subplots(1, len(shown), figsize=(12, 1.8))
for axis, product in zip(axes, shown, strict=True):
    axis.imshow(product.image)
    axis.set_title(product.category, fontsize=8)
    axis.axis("off")
plt.show()
for product in shown[:3]:
    print(f"{product.title}: {product.description}")
for review in domain.reviews[:3]:
    print(f"{review.stars:.0f} stars: {review.text}")

# %% [markdown]
# ## Two stages of training
#
# Pre-training reads the sources without labels; multi-task training then learns all four tasks at
# once. Each stage has a folder with its checkpoints, its config and its metrics.

# %%
start = random_start(split, config.seed)
trained = start
for name, build in {"pretrain": pretraining_stage, "multitask": multitask_stage}.items():
    stage, here = build(config, split), folder / name
    trained = train_stage(
        stage, trained, config=config, split=split, workdir=here, seed=config.seed
    )

# %% [markdown]
# ## The guide at work
#
# `load` reads the folder of a stage, or of a complete run of `python -m experiments.guide`. `adapt`
# takes a domain, or the folder of one. `predict` chooses the task by the type of its input and does
# not read labels. The examples asked about here were not used to adapt.

# %%
adapted = metaguide.load(folder / "multitask").adapt(domain, shots=5)


def others(task, examples, count=4):
    """The first examples that the guide did not adapt to."""
    return [one for one in examples if one.id not in adapted.adapted[task].chosen][:count]


# %%
products = others("classification", domain.products[::-7])
for product, found in zip(products, adapted.predict(products), strict=True):
    print(f"{product.title}: {found.category} (it is {product.category})")

# %%
reviews = others("sentiment", domain.reviews)
for review, found in zip(reviews, adapted.predict(reviews), strict=True):
    print(f"{found.sentiment}, {found.stars:.1f} stars (it has {review.stars:.0f}): {review.text}")

# %%
questions = others("questions", domain.questions)
for question, found in zip(questions, adapted.predict(questions), strict=True):
    print(f"{question.question} {found.text or 'no answer'}\n    in: {question.text}")

# %%
users = histories(domain.interactions)[:3]
titles = {product.id: product.title for product in domain.products}
for user, found in zip(users, adapted.predict(users), strict=True):
    print(f"after {titles[user.products[-1]]}: {', '.join(map(titles.get, found.products[:3]))}")

# %% [markdown]
# ## Your own learner
#
# A learner is a few functions. `adapt` turns the support of an episode into an adapted problem, and
# only this function differs here: its gradient steps are pulled back to their start,
# L(θ) + λ‖θ − θ₀‖² (Li et al., 2018). Everything else is the same as in fine-tuning. The scan, the
# optimizer and the mode of differentiation are those of the shared inner loop.


# %%
def pulled_back(problem, rate, steps, strength):
    """Fine-tuning with a penalty on the distance from the start."""

    def adapt(meta, support, context, key, observe=None):
        first = meta["params"]

        def loss(params, batch):
            value, metrics = whole_loss(problem, params, batch, context, key=None)
            moved = optax.tree.sub(params, first)
            return value + strength * optax.tree.vdot(moved, moved), metrics

        return inner_loop.adapt(
            loss,
            optax.sgd(rate),
            FirstOrder(),
            first,
            lambda step: support,
            steps,
            observe and (lambda carry: observe(carry.params)),
        )

    return fine_tuning(problem, optax.sgd(rate), steps)._replace(adapt=adapt)


# %% [markdown]
# ## Adaptation curves
#
# The plot shows both learners on the same episodes of the held-out domain, before the first step
# and after each step: from the trained parameters and, for fine-tuning, also from random ones.

# %%
distribution = split.task_distributions("held_out")["sentiment"]
steps = config.adapt.steps
learners = {
    "fine-tuning": partial(fine_tuning, distribution.problem, steps=steps),
    "pulled back": partial(pulled_back, distribution.problem, steps=steps, strength=0.1),
}
evaluate = evaluator(
    distribution,
    {
        "fine-tuning": lambda rate: learners["fine-tuning"](optax.sgd(rate)),
        "pulled back": lambda rate: learners["pulled back"](rate),
    },
    chunk=config.adapt.chunk["sentiment"],
)
keys = episode_keys(config.seed, "test", config.adapt.episodes)
rates = {name: 0.1 for name in learners}
number = distribution.domains.index(domain.name)
curves = evaluate.run(trained, distribution.data, number, 5, keys, rates)
curves["from scratch"] = evaluate.run(start, distribution.data, number, 5, keys, rates)[
    "fine-tuning"
]

# %%
for name, raw in curves.items():
    accuracy = (raw["predicted"] == raw["target"]).mean(-1)  # [steps + 1, episodes]
    means, halves = zip(*map(mean_interval, accuracy), strict=True)
    plt.errorbar(range(steps + 1), means, halves, label=name, capsize=2)
plt.xlabel("adaptation steps")
plt.ylabel(f"accuracy, {domain.name}, 5 shots")
plt.legend()
plt.show()
