"""Few-shot sentiment of 23 domains of Amazon, ARSC (Yu et al. 2018), at three thresholds of stars.

A review is positive from 2, 4 or 5 stars on, and each threshold has reviews of its own. Four
domains are targets, with five reviews of each sentiment to adapt to. The others are sources; as the
set is found today, two of the published 19 lack their file for training and are left out.
"""

from pathlib import Path

from ml_collections.config_dict import FrozenConfigDict

from experiments.sources import Reviews
from experiments.sources.parts import Parts, imported, members, named, real_data
from metaguide.data.catalogue import Domain
from metaguide.data.online_shopping import drop_repeats

FILE = "arsc.zip"
"""The zip of the folder `Amazon_few_shot` as it is published."""

TARGETS = ("books", "dvd", "electronics", "kitchen_housewares")

THRESHOLDS = ("t2", "t4", "t5")


def read_reviews() -> tuple[Reviews, ...]:
    """Read the reviews of each threshold; the errors are those of `reviews_of`.

    Of a target, the support and the test; the published file for validation is of the target and
    is not read. A text that a target has is left out of the sources.
    """
    files: dict[str, dict[str, Path]] = {}
    for path in members(real_data(FILE), "*.t[245].*"):
        name, _, part = path.name.rpartition(".")
        files.setdefault(name, {})[part] = path
    found = []
    for threshold in THRESHOLDS:
        targets = [f"{name}.{threshold}" for name in TARGETS]
        others = [one for one in files if one.endswith(threshold) and one not in targets]
        domains = {one: imported(one, "arsc", _of_target(files[one])) for one in targets}
        for one in others:
            if "train" in files[one]:
                domains[one] = imported(one, "arsc", sorted(files[one].values()))
        domains, _ = drop_repeats(domains)
        support = {
            one: tuple(r.id for r in domains[one].reviews if r.id.startswith(f"{one}.train-"))
            for one in targets
        }
        found.append(Reviews(domains, support))
    return tuple(found)


def _of_target(files: dict[str, Path]) -> list[Path]:
    return [files["train"], files["test"]]


def read_domains() -> dict[str, Domain]:
    """Read the domains of all thresholds, such as "books.t2"; the errors are `read_reviews`'."""
    return {name: one for part in read_reviews() for name, one in part.domains.items()}


def read(config: FrozenConfigDict, folder: Path) -> Parts:
    """Read the domains of all thresholds for a run.

    The errors are those of `named` and `read_reviews`.

    Args:
        config: its `data` is read.
        folder: unused, since nothing is generated.
    """
    return named(config, read_domains())
