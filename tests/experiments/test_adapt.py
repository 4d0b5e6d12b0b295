"""The evaluations that a comparison of arms stands on."""

import pytest
from ml_collections.config_dict import FrozenConfigDict

from experiments import worlds
from experiments.adapt import benches
from experiments.configs import guide_bazaar
from experiments.stages import random_start
from metaguide.data.catalogue import Domain, Product, write_domain


@pytest.mark.slow
def test_without_shots_an_arm_is_judged_as_it_is_though_zero_shot_is_no_arm(tmp_path):
    """Fault: only the ways are laid out that the config's arms adapt in with shots."""
    for name in ("a", "b", "c"):
        products = tuple(
            Product(f"{name}{i}", f"{name} thing {i}", category=f"{name} kind {i % 3}")
            for i in range(6)
        )
        write_domain(Domain(name, products), tmp_path / "shop" / name)
    config = guide_bazaar.get_config()
    config.data.update({"world": "catalogue", "folder": str(tmp_path / "shop")})
    config.data.update({"validation": ("b",), "held_out": ("c",)})
    config.model.update({"width": 8, "layers": 1, "image": False})
    config.text.vocabulary = 300
    config.episodes.update({"way": 3, "shots": 1, "queries": 2})
    config.adapt.update({"episodes": 2, "validation_episodes": 1, "steps": 1})
    config.adapt.arms = {"maml": ("classification",)}
    frozen = FrozenConfigDict(config)
    world = worlds.prepare(frozen, tmp_path / "run")
    bench = benches(frozen, world)["classification"]
    judged = bench(random_start(world, 0), "none", "c", 0, "test", {})
    assert judged["predicted"].shape == (1, 2, 2)
