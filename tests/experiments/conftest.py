"""What several tests of experiments run on: a small config file, and a shop of three domains."""

import pytest

from experiments.configs import guide_bazaar
from metaguide.data.catalogue import Domain, Interaction, Product, write_domain
from metaguide.evaluation.results import read

CONFIG = """
from ml_collections import config_dict


def get_config():
    return config_dict.ConfigDict({
        "preset": "default",
        "presets": {"full": {"seeds": 3, "adapt": {"episodes": 600}}, "bad": {"adapt": {"epis": 1}},
                    "worse": {"adapt": {"episodes": "many"}}},
        "seeds": 1,
        "init_from": config_dict.placeholder(str),
        "adapt": {"episodes": 50, "shots": (0, 1), "learning_rate": 0.1, "curves": True},
        "pretrain": {"learning_rate": 1e-3, "log_every": 10},
        "methods": {"zero-shot": 1},
    })
"""


@pytest.fixture
def file(tmp_path):
    """A config file of an experiment that there is not, with presets."""
    path = tmp_path / "small.py"
    path.write_text(CONFIG)
    return path


def _write_shop(folder, bought=0):
    """Write a catalogue in which a user took the first `bought` products; return its config."""
    for name in ("a", "b", "c"):
        products = tuple(
            Product(f"{name}{i}", f"{name} thing {i}", category=f"{name} kind {i % 3}")
            for i in range(6)
        )
        taken = tuple(Interaction("u", product.id, 0.0) for product in products[:bought])
        write_domain(Domain(name, products, interactions=taken), folder / "shop" / name)
    config = guide_bazaar.get_config()
    config.data.update({"world": "catalogue", "folder": str(folder / "shop")})
    config.data.update({"validation": ("b",), "held_out": ("c",)})
    config.model.update({"width": 8, "layers": 1, "image": False})
    config.text.vocabulary = 300
    config.episodes.update({"way": 3, "shots": 1, "queries": 2})
    return config


@pytest.fixture(scope="session")
def write_shop():
    """What writes a shop to a folder and returns its config."""
    return _write_shop


@pytest.fixture(scope="module")
def shop_config(tmp_path_factory, write_shop):
    """A config of one task on a catalogue, and the folder that it is in."""
    folder = tmp_path_factory.mktemp("shop")
    return write_shop(folder), folder


def _check_resumes(run, module, step, folder, monkeypatch):
    """Stop a run of a table halfway through the calls of its costly step, and start it again.

    The table has to be that of a run in one piece, and no call that was finished may be repeated,
    but for those of the one part that was stopped.
    """
    costly, calls, stop = getattr(module, step), [], []

    def counted(*args, **kwargs):
        calls.append(step)
        if len(calls) in stop:
            raise KeyboardInterrupt
        return costly(*args, **kwargs)

    monkeypatch.setattr(module, step, counted)
    run(folder / "whole")
    every = len(calls)
    stop.append(every + every // 2)
    with pytest.raises(KeyboardInterrupt):
        run(folder / "halves")
    assert not (folder / "halves" / "results.json").exists()
    run(folder / "halves")
    repeated = len(calls) - 2 * every
    whole, halves = (read(folder / name) for name in ("whole", "halves"))
    assert whole.rows == halves.rows
    assert whole.scores.keys() == halves.scores.keys()
    run(folder / "halves")
    assert len(calls) == 2 * every + repeated
    return repeated, every


@pytest.fixture(scope="session")
def check_resumes():
    """What stops a run, starts it again, and returns how many steps were repeated, and of how many.

    Its arguments: what runs in a folder, the module and name of the step, a folder, a monkeypatch.
    """
    return _check_resumes
