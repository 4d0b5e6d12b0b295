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
# # Your own shop
#
# From a table of a shop to answers: import it, see what it allows, see what a guide knows of it and
# what each further label buys, adapt, and answer what has no label. The commands of `metaguide`
# (`import`, `check`, `evaluate`, `adapt`, `predict`) do the same without Python.
#
# In Colab, open it with the badge in the README or with *File > Open notebook*, and set `source`
# below to the address of the repository. It takes about three minutes on two CPU cores.

# %% tags=["parameters"]
# Where to find metaguide if it is not installed: a clone, or the git address of its repository.
# Empty: the clone that contains this notebook.
source = ""  # @param {type:"string"}
# The folder of a pretrained encoder from Hugging Face, such as multilingual-e5-small, which knows
# far more. Empty: train a small guide on the embedded data in a minute.
encoder = ""  # @param {type:"string"}
preset = "default"  # "tiny" runs every cell in about a minute and learns nothing
workdir = "runs/own_shop"

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
import csv
import json

import matplotlib.pyplot as plt

import metaguide
from experiments import command, process_setup
from experiments.domain_split import prepare
from experiments.multitask import multitask_stage
from experiments.pretrain import pretraining_stage
from experiments.stages import random_start, train_stage
from metaguide import evaluation_report
from metaguide.choosing import best
from metaguide.data.catalogue import read_domain
from metaguide.data.importers import FORMATS, Options, import_domain
from metaguide.evaluating import evaluate
from metaguide.overview import overview
from metaguide.predicting import predict_file

# %% [markdown]
# ## A guide
#
# Without an encoder, a small guide is trained on the generated shops that come with metaguide. The
# shop below is not among them.

# %%
size = "quick" if preset == "default" else preset
config, folder = command.resolve(
    ["notebook", f"--config.preset={size}", f"--workdir={workdir}"],
    default="experiments/configs/guide_bazaar.py",
    workdir=workdir,
)
process_setup.enable_compilation_cache()
split = prepare(config, folder)
if encoder:
    guide = metaguide.from_encoder(encoder, prefix="query: ", length=128, cache=folder / "vectors")
else:
    trained = random_start(split, config.seed)
    for name, build in {"pretrain": pretraining_stage, "multitask": multitask_stage}.items():
        stage, here = build(config, split), folder / name
        trained = train_stage(
            stage, trained, config=config, split=split, workdir=here, seed=config.seed
        )
    guide = metaguide.load(folder / "multitask")
print(guide)

# %% [markdown]
# ## The shop's table
#
# Put your own file here: CSV, TSV, JSON lines or Parquet, with any names of columns. This one has
# reviews with a rating for two thirds of them.

# %%
export = folder / "reviews.csv"
with export.open("w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["comment", "rating"])
    for number, review in enumerate(split.held_out[0].reviews):
        rows.writerow([review.text, f"{review.stars:g}/5" if number % 3 else ""])
print("".join(export.read_text().splitlines(keepends=True)[:4]))

# %% [markdown]
# Say which column holds what. Lines that cannot be read are counted, and written to a file.

# %%
shop = folder / "my_shop" / "toys"
columns = Options(mapping={"text": "comment", "stars": "rating"})
summary = import_domain(FORMATS["csv"].importer, [export], shop, columns, replace=True)
print(f"read: {dict(summary.read)}, rejected: {summary.rejects}")
domain = read_domain(shop)
for task, found in overview(domain).tasks.items():
    print(f"{task}: {dict(found.counts) if found.is_possible else found.notes[0]}")

# %% [markdown]
# ## What the guide knows of it
#
# Half of the labels are held back and asked. Each draw adapts to some of the others, and baselines
# see the same examples. The picture is the learning curve, with 95% intervals.

# %%
shots, draws = ((1, 5, 10), 3) if preset == "default" else ((5,), 1)
(evaluation,) = evaluate(guide, domain, shots, draws=draws, queries=200, unlabelled=200)
print("\n".join(evaluation_report.as_text(evaluation)))
page = evaluation_report.as_page([evaluation], domain.name, "a guide")
(folder / "report.html").write_text(page)

figure, axis = plt.subplots(figsize=(6, 3.2))
for method in dict.fromkeys(cell.method for cell in evaluation.cells):
    cells = [cell for cell in evaluation.cells if cell.method == method]
    values = [cell.score.value for cell in cells]
    halves = [cell.score.half or 0 for cell in cells]
    axis.errorbar([str(cell.shots) for cell in cells], values, halves, marker="o", label=method)
axis.set(xlabel="labels of each class", ylabel="accuracy on what was held back")
axis.legend()
plt.show()

# %% [markdown]
# ## Adapt, and save
#
# Each task is served by the guide's own method, unless another one, such as plain TF-IDF, is
# clearly better on the labels when they are held back in turn.

# %%
adapted, choices = best(guide.adapt(domain, shots=10, unlabelled=200))
for task, choice in choices.items():
    right = {method: round(value, 2) for method, value in choice.accuracy.items()}
    print(f"{task}: served by {choice.method}; right on held-back examples: {right}")
adapted.save(folder / "toys.guide")

# %% [markdown]
# ## Answers
#
# The saved guide answers a table, here the same one. The columns stay, and those of the answers are
# added. `metaguide serve` opens a page to ask it and to teach it.

# %%
answers = folder / "answers.jsonl"
done = predict_file(metaguide.load(folder / "toys.guide"), export, answers, columns)
print(f"{done.answered} answered, {done.unread} not read")
found = [json.loads(line) for line in answers.open()]
bare = [row for row in found if not row["rating"]]
for row in bare[:4]:
    print(f"{row['predicted_sentiment']} ({row['predicted_positive']:.2f}): {row['comment']}")

figure, axis = plt.subplots(figsize=(6, 2.4))
axis.hist([row["predicted_positive"] for row in bare], bins=20, range=(0, 1))
axis.set(xlabel="probability that a review without a rating is positive", ylabel="reviews")
plt.show()
