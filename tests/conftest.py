"""Eight CPU devices, strict numerics, and array shapes checked at run time, for every test."""

import os

from experiments.compilation import fast

FAST_COMPILATION = fast()
# For the tests that start a process of their own with one device, as a user has.
os.environ["METAGUIDE_TESTS_XLA_FLAGS"] = FAST_COMPILATION
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        FAST_COMPILATION,
        "--xla_force_host_platform_device_count=8",
    )
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("metaguide", "beartype.beartype")

import jax  # noqa: E402
import pytest  # noqa: E402

from experiments.process_setup import enable_compilation_cache  # noqa: E402

LONGEST = (
    "test_few_shot.py",
    "test_guide_run.py",
    "test_notebooks.py",
    "test_distributed.py",
    "test_learned_optimizers.py",
)
"""Files of a few tests that take a minute or more."""


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled programs in pytest's cache, for processes of the tests and for later runs."""
    assert config.cache is not None
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("xla")))
    # JAX was imported before, by what checks shapes.
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    enable_compilation_cache()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: a process that ends with one leaves the others idle."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture
def room_for_programs() -> None:
    """Forget compiled programs: of more than 8,192 functions JAX keeps and counts no new ones."""
    jax.clear_caches()


jax.config.update("jax_numpy_dtype_promotion", "strict")
