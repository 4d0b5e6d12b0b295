"""A shop of three domains, on which everything of the guide runs in seconds."""

import pytest

from experiments.configs import guide_bazaar
from metaguide.data.catalogue import Domain, Product, write_domain


@pytest.fixture(scope="module")
def shop_config(tmp_path_factory):
    """A config of one kind of task on a catalogue, and the folder that it is in."""
    folder = tmp_path_factory.mktemp("shop")
    for name in ("a", "b", "c"):
        products = tuple(
            Product(f"{name}{i}", f"{name} thing {i}", category=f"{name} kind {i % 3}")
            for i in range(6)
        )
        write_domain(Domain(name, products), folder / "shop" / name)
    config = guide_bazaar.get_config()
    config.data.update({"world": "catalogue", "folder": str(folder / "shop")})
    config.data.update({"validation": ("b",), "held_out": ("c",)})
    config.model.update({"width": 8, "layers": 1, "image": False})
    config.text.vocabulary = 300
    config.episodes.update({"way": 3, "shots": 1, "queries": 2})
    return config, folder
