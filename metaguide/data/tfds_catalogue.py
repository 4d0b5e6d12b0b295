"""A catalogue as a data set of TensorFlow Datasets: a split for each domain, without TensorFlow."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metaguide.data.catalogue import (
    IMAGE_SIDE,
    CatalogueError,
    Domain,
    Interaction,
    Product,
    Question,
    Review,
)
from metaguide.data.rows import PARTS
from metaguide.data.tfds import FORMAT


def builder(
    name: str,
    part: str,
    read: Callable[[], Mapping[str, Domain]],
    data_dir: Path | str | None = None,
    version: str = "1.0.0",
) -> Any:
    """Return the builder of one part of a catalogue, such as the reviews of a shop.

    Its `download_and_prepare()` writes the examples, and `as_data_source(split)` reads them by
    number, as Grain and PyTorch take them; neither imports TensorFlow. A split is named for its
    domain, with "_" for what is no letter, digit or "_".

        builder = tfds_catalogue.builder(
            "my_shop_reviews", "reviews", lambda: read_catalogue(Path("my_shop"))
        )
        builder.download_and_prepare()
        builder.as_data_source("garden")[0]["text"]

    An absent text is "", an absent number of stars 0, an absent label -1. A label is 1 for a
    positive review and 0 for a negative one; attributes are JSON; the spans of `answers` count
    characters.

    Args:
        name: name of the data set, in lower case with "_".
        part: "products", "reviews", "questions" or "interactions".
        read: reads the domains, keyed by name; called if the data set is not prepared.
        data_dir: TensorFlow Datasets' folder of all data sets; None: its default.
        version: of the data set; what was prepared as the same version is not made again.

    Returns:
        A `tfds.core.GeneratorBasedBuilder`.

    Raises:
        ValueError: there is no such part, or the name is not one.
        CatalogueError: raised by `download_and_prepare()`: no domain has the part, or two domains
            would be one split.
    """
    import tensorflow_datasets as tfds  # imported here, since it is slow

    if part not in PARTS:
        raise ValueError(f"part is {part!r}; there are {', '.join(PARTS)}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"name is {name!r}; give lower-case letters, digits and _, as in my_shop")
    kinds = tfds.features
    text, picture = kinds.Text(), (IMAGE_SIDE, IMAGE_SIDE, 3)
    span = {"start": np.int64, "end": np.int64}
    features = {
        "products": {
            **dict.fromkeys(("id", "title", "description", "category", "attributes"), text),
            "image": kinds.Tensor(shape=picture, dtype=np.uint8),
            "has_image": np.bool_,
        },
        "reviews": {
            **dict.fromkeys(("id", "text", "product"), text),
            "stars": np.float32,
            "label": np.int64,
        },
        "questions": {
            **dict.fromkeys(("id", "question", "text", "product"), text),
            "answers": kinds.Sequence(span),
        },
        "interactions": {
            **dict.fromkeys(("user", "product"), text),
            # Otherwise stored as float32, which has no seconds at today's times.
            "time": kinds.Tensor(shape=(), dtype=np.float64, encoding="bytes"),
        },
    }[part]

    called = name

    # TensorFlow Datasets' own list of data sets is global; this one is the caller's.
    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """The part of the catalogue."""

        name = called
        VERSION = tfds.core.Version(version)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"The {part} of a catalogue of metaguide, a split for each domain.",
                features=kinds.FeaturesDict(features),
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            del dl_manager  # nothing is downloaded
            return {
                split: self._generate_examples(rows)
                for split, rows in _splits(read(), part).items()
            }

        def _generate_examples(self, rows: Sequence[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
            return enumerate(map(_example, rows))

    return Builder(data_dir=data_dir, file_format=FORMAT)


def _splits(domains: Mapping[str, Domain], part: str) -> dict[str, Sequence[Any]]:
    """Return the rows of each domain that has some, keyed by the name of its split."""
    found: dict[str, Sequence[Any]] = {}
    for name, domain in domains.items():
        if rows := getattr(domain, part):
            split = re.sub(r"\W", "_", name)
            if split in found:
                raise CatalogueError(
                    f"domain {name}: another domain's split is named {split!r} too; rename one"
                )
            found[split] = rows
    if not found:
        raise CatalogueError(f"no domain has {part}; give another part or another catalogue")
    return found


def _example(row: Product | Review | Question | Interaction) -> dict[str, Any]:
    """Return a row as the features of its part."""
    if isinstance(row, Product):
        blank = np.zeros((IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8)
        return {
            "id": row.id,
            "title": row.title,
            "description": row.description,
            "category": row.category or "",
            "attributes": json.dumps(dict(row.attributes), ensure_ascii=False),
            "image": blank if row.image is None else row.image,
            "has_image": row.image is not None,
        }
    if isinstance(row, Review):
        label = -1 if row.label is None else row.label
        texts = {"id": row.id, "text": row.text, "product": row.product or ""}
        return {**texts, "stars": row.stars or 0.0, "label": label}
    if isinstance(row, Question):
        spans = () if row.answer is None else (row.answer, *row.others)
        return {
            "id": row.id,
            "question": row.question,
            "text": row.text,
            "product": row.product or "",
            "answers": [{"start": start, "end": end} for start, end in spans],
        }
    return {"user": row.user, "product": row.product, "time": row.time}
