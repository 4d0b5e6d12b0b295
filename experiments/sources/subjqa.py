"""Questions about reviews of six shops, SubjQA (Bjerva et al. 2020), each with a span or no answer.

Several people may have answered a question. Each of their answers is a question of its own here.
"""

from collections.abc import Mapping
from pathlib import Path

from ml_collections.config_dict import FrozenConfigDict

from experiments.sources.parts import Parts, imported, members, named, real_data
from metaguide.data.catalogue import Domain

FILE = "subjqa.zip"
"""The zip of the folder `SubjQA` as it is published."""

PARTS = ("train", "dev", "test")
"""The parts of a domain; books and movies have no part for training."""


def read_questions() -> dict[str, Mapping[str, Domain]]:
    """Read the questions of each domain.

    Returns:
        Domain -> part -> its questions.

    Raises:
        ConfigError: METAGUIDE_DATA_DIR is not set.
        CatalogueError: the file is missing or damaged.
    """
    found: dict[str, dict[str, Domain]] = {}
    for path in members(real_data(FILE), "*/splits/*.csv"):
        if path.stem in PARTS:
            name = path.parent.parent.name
            found.setdefault(name, {})[path.stem] = imported(name, "subjqa", [path])
    return {name: found[name] for name in sorted(found)}


def read_domains() -> dict[str, Domain]:
    """Read all parts of each domain as one; errors are those of `read_questions`."""
    return {
        name: Domain(
            name, questions=tuple(one for part in parts.values() for one in part.questions)
        )
        for name, parts in read_questions().items()
    }


def read(config: FrozenConfigDict, folder: Path) -> Parts:
    """Read the domains for a run, all parts of each; errors are those of `read_questions`.

    Args:
        config: its `data` is read.
        folder: unused, since nothing is generated.

    Raises:
        ConfigError: as in `named`.
    """
    return named(config, read_domains())
