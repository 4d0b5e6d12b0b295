"""Sixteen domains that all teach and are all tested: heads, choices and the table."""

import json
import zipfile
from functools import partial

import numpy as np
import pytest
from scipy import sparse

from experiments import command
from experiments.config_files import ConfigError
from experiments.modules import COMMANDS
from experiments.run_folder import claimed
from experiments.sources import fdu_mtl
from experiments.tables import in_domain, product_images, products, questions, reviews
from experiments.tables.left_out import corpus_of, sparse_logits
from metaguide.evaluation.results import read
from metaguide.files import FolderHeld

GOOD = ("good great fine", "bad poor weak")
"""Words of positive and of negative reviews; in the domain "upside" it is the other way round."""


def config_of(*flags):
    defaults = COMMANDS["experiments.tables.in_domain"]._asdict()
    return command.resolve(["x", "--config.preset=tiny", *flags], **defaults, late=True)[0]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A small FDU-MTL of two domains that agree and one that says the opposite."""
    path = tmp_path / fdu_mtl.FILE
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("books", "MR", "upside"):
            for part, count in (("train", 60), ("test", 24)):
                lines = []
                for number in range(count):
                    label = number % 2
                    words = GOOD[(label == 0) != (name == "upside")].split()
                    # The first test review of each sentiment trains as well.
                    last = f"test{number}" if part == "test" and number > 1 else f"train{number}"
                    drawn = np.random.default_rng(int(last[-1])).choice(words, 2)
                    text = f"{drawn[0]} {drawn[1]} {last}"
                    lines.append(f"{label}\t{text}\n")
                archive.writestr(f"mtl-dataset/{name}.task.{part}", "".join(lines))
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    return tmp_path


def test_a_head_of_its_own_is_what_a_domain_of_another_opinion_needs(data, tmp_path):
    """Faults: a domain is tested by another's head, or on what trained it; films are left out; the
    place of a domain's own features is another's; the interval of a seed is 0."""
    config = config_of(
        "--config.seeds=(0,1)", "--config.most=0", "--config.ngrams.longest=1",
        "--config.development=20", "--config.own=(3.0,)",
    )  # fmt: skip
    in_domain.main(config, tmp_path / "work")
    found = read(tmp_path / "work")
    value = {(row.method, row.domain): row for row in found.rows if row.metric == "accuracy"}
    assert {domain for _, domain in value} == {"all", "books", "MR", "upside"}
    assert value["own", "upside"].value == value["shared + own", "upside"].value == 1
    assert value["shared", "upside"].value < 0.1 and value["shared", "books"].value == 1
    assert value["shared + own", "all"].value == 1 and value["majority", "all"].value == 0.5
    assert value["shared + own", "all"].seeds == 2 and value["majority", "all"].seeds == 1
    assert value["tf-idf own", "upside"].value > 0.9 > 0.1 > value["tf-idf shared", "upside"].value
    assert value["tf-idf own", "all"].seeds == 2, "its λ is chosen as the others are"
    assert value["shared + own", "all"].published == in_domain.PUBLISHED
    counts = {
        metric: found.scores[f"in_domain/own/books/sentiment/-/-/{metric}"]["id"].shape[1]
        for metric in ("accuracy", "accuracy_new")
    }
    assert counts == {"accuracy": 24, "accuracy_new": 22}
    assert json.loads((tmp_path / "work" / "results.json").read_text())["seeds"] == [0, 1]


def test_own_features_are_one_regression_with_heads_that_are_pulled_together():
    """Faults: ρ scales the shared features, or those of another domain; heads of ρ = 0 differ."""
    rng = np.random.default_rng(1)
    vectors = sparse.csr_array(rng.random((6, 4)) * (rng.random((6, 4)) < 0.6))
    category = np.array([0, 0, 1, 2, 2, 2])
    found = in_domain.with_own(vectors, category, 3, 0.5).toarray()
    dense = vectors.toarray()
    assert found.shape == (6, 16) and (found[:, :4] == dense).all()
    for row, place in enumerate(category):
        own = found[row, 4:].reshape(3, 4)
        assert (own[place] == 0.5 * dense[row]).all()
        assert not np.delete(own, place, axis=0).any()
    assert (in_domain.with_own(vectors, category, 3, 0).toarray() == dense).all()


def test_a_head_alone_reads_its_domain_alone():
    """Fault: the labels of another domain reach a head of its own."""
    texts = [f"{word} {number}" for number, word in enumerate("ab" * 10)]
    label = np.array([0, 1] * 5 + [1, 0] * 5)
    corpus = corpus_of(("x", "y"), (), [0] * 10 + [1] * 10, label, texts, 1, "word")
    vectors = sparse.csr_array(corpus.counts)
    logits = in_domain.own(1.0)(corpus, vectors, corpus, vectors)
    for rows in (np.arange(10), np.arange(10, 20)):
        alone = sparse_logits(vectors[rows], label[rows], vectors[rows], 1.0)
        np.testing.assert_allclose(logits[rows], alone, atol=1e-6)


@pytest.mark.parametrize("table", [in_domain, product_images, products, questions, reviews])
def test_a_folder_in_use_is_refused(table, tmp_path):
    """Fault: two runs of a table in one folder write each other's files."""
    with claimed(config_of(), tmp_path), pytest.raises(FolderHeld):
        table.main(config_of(), tmp_path)


@pytest.mark.slow
def test_a_table_that_was_stopped_goes_on(data, tmp_path, monkeypatch, check_resumes):
    """Faults: what was chosen, or trained for the test, is trained again; what is read back is not
    what was computed."""
    run = partial(in_domain.main, config_of("--config.seeds=(0,1)"))
    repeated, every = check_resumes(run, in_domain, "sparse_logits", tmp_path, monkeypatch)
    most = max(len(one) for one in in_domain.candidates_of(config_of()).values())
    assert repeated <= 3 * most < every  # the candidates of a method, in three domains


def test_too_few_reviews_are_an_error(data, tmp_path):
    """Fault: all of a domain is set aside, and nothing trains."""
    config = config_of("--config.development=31", "--config.most=0")
    with pytest.raises(ConfigError, match="development is 31, more than half of the 60 reviews"):
        in_domain.main(config, tmp_path / "work")
