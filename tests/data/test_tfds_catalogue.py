"""A catalogue that TensorFlow Datasets prepares and reads is the catalogue."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from experiments import sources
from experiments.config_files import ConfigError
from metaguide.data import tfds_catalogue
from metaguide.data.catalogue import (
    CatalogueError,
    Domain,
    Interaction,
    Product,
    Question,
    Review,
)

IMAGE = np.arange(32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
GARDEN = Domain(
    "garden tools",
    (
        Product("p1", "Spade", "Of steel.", "tool", {"colour": "red"}, IMAGE),
        Product("p2", "铲子"),
    ),
    (
        Review("r1", "很好", stars=4.5, product="p1"),
        Review("r2", "broke", sentiment="negative"),
        Review("r3", "so so", stars=3.0),
    ),
    (
        Question("q1", "Of what?", "Of steel, of wood.", (3, 8), others=((13, 17),)),
        Question("q2", "When?", "Of steel."),
    ),
    (Interaction("u1", "p1", 1.5), Interaction("u1", "p2", 1700000000.25)),
)
HOME = Domain("home", reviews=(Review("h1", "fine", stars=5.0),))


def prepared(folder, part, domains=(GARDEN, HOME)):
    builder = tfds_catalogue.builder(
        f"shop_{part}", part, lambda: {one.name: one for one in domains}, folder
    )
    builder.download_and_prepare()
    return builder


def rows(builder, split, by="id"):
    """The examples as they are read, sorted, with texts decoded."""
    found = [
        {name: one.decode() if isinstance(one, bytes) else one for name, one in row.items()}
        for row in builder.as_data_source(split)
    ]
    return sorted(found, key=lambda row: row[by])


def test_every_part_comes_back(tmp_path):
    """Faults: a row or a field is lost or another's, a picture is changed, a review of three stars
    has a label, a span is another's, a domain without a part has a split, a time is
    rounded to minutes."""
    one, other = rows(prepared(tmp_path, "products"), "garden_tools")
    assert (one["title"], one["category"], other["title"]) == ("Spade", "tool", "铲子")
    assert json.loads(one["attributes"]) == {"colour": "red"} and other["category"] == ""
    assert (one["image"] == IMAGE).all() and one["has_image"] and not other["has_image"]

    builder = prepared(tmp_path, "reviews")
    assert set(builder.info.splits) == {"garden_tools", "home"}
    found = rows(builder, "garden_tools")
    assert [(row["text"], row["stars"], row["label"], row["product"]) for row in found] == [
        ("很好", 4.5, 1, "p1"),
        ("broke", 0, 0, ""),
        ("so so", 3, -1, ""),
    ]
    assert [row["text"] for row in rows(builder, "home")] == ["fine"]

    builder = prepared(tmp_path, "questions")
    assert set(builder.info.splits) == {"garden_tools"}
    one, other = rows(builder, "garden_tools")
    spans = zip(one["answers"]["start"], one["answers"]["end"], strict=True)
    assert [one["text"][start:end] for start, end in spans] == ["steel", "wood"]
    assert len(other["answers"]["start"]) == 0

    found = rows(prepared(tmp_path, "interactions"), "garden_tools", "time")
    assert [(row["user"], row["product"], row["time"]) for row in found] == [
        ("u1", "p1", 1.5),
        ("u1", "p2", 1700000000.25),
    ]


def test_what_cannot_be_a_data_set_is_one_error(tmp_path):
    """Faults: an empty data set, two domains in one split, or a name that TensorFlow Datasets
    refuses in its own words."""
    with pytest.raises(ValueError, match="part is 'pictures'; there are products, reviews"):
        tfds_catalogue.builder("shop", "pictures", dict, tmp_path)
    with pytest.raises(ValueError, match="name is 'My shop'; give lower-case letters"):
        tfds_catalogue.builder("My shop", "reviews", dict, tmp_path)
    with pytest.raises(CatalogueError, match="no domain has interactions"):
        prepared(tmp_path, "interactions", [HOME])
    twin = Domain("garden/tools", reviews=HOME.reviews)
    with pytest.raises(CatalogueError, match="domain garden/tools: another domain's split"):
        prepared(tmp_path, "reviews", [GARDEN, twin])
    assert not list(tmp_path.rglob("*.array_record"))


@pytest.mark.slow
def test_what_is_prepared_is_read_without_the_catalogue_and_without_tensorflow(tmp_path):
    """Faults: the catalogue is read again, or TensorFlow is imported, which few have."""
    prepared(tmp_path, "reviews")
    code = f"""
        import sys
        from metaguide.data import tfds_catalogue
        builder = tfds_catalogue.builder("shop_reviews", "reviews", None, {str(tmp_path)!r})
        builder.download_and_prepare()
        print(builder.as_data_source("home")[0]["text"], "tensorflow" in sys.modules)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.split("\n")[-2] == "b'fine' False"


@pytest.mark.slow
@pytest.mark.skipif("METAGUIDE_DATA_DIR" not in os.environ, reason="METAGUIDE_DATA_DIR is not set")
@pytest.mark.parametrize(
    "name, part, split, count",
    [
        ("subjqa", "questions", "books", 957),
        ("fdu_mtl", "reviews", "kitchen_housewares", 1977),
    ],
)
def test_real_data_sets_are_prepared_from_their_files(tmp_path, name, part, split, count):
    """Fault: a source that has no domains of its own to give."""
    builder = sources.tfds_builder(name, part, tmp_path)
    builder.download_and_prepare()
    assert len(builder.as_data_source(split)) == count


def test_a_data_set_that_there_is_not_is_refused(tmp_path):
    """Fault: a module of another name is imported."""
    with pytest.raises(ConfigError, match="no data set 'parts'; there are online_shopping, fdu"):
        sources.tfds_builder("parts", "reviews", tmp_path)
