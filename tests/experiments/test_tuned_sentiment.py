"""An encoder that reviews of sources teach: what it reads, and what is chosen of it on what."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.config_files import ConfigError
from experiments.tables import reviews, source_heads, tuned_sentiment
from experiments.tables.left_out import Corpus, corpus_of
from experiments.tables.tuned_encoder import tuned_guide
from experiments.tables.tuned_sentiment import Taught, batches_of, held_back, taught_encoder
from metaguide.guide import load
from metaguide.models.encoder import FROZEN
from metaguide.models.guide import init_params
from metaguide.pretrained import PretrainedEncoder, load_encoder
from metaguide.tasks.sentiment import sentiment
from metaguide.training.checkpoint import CheckpointError
from tests.experiments.test_reviews import config_of
from tests.pretrained.conftest import write as write_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"), "bert")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> PretrainedEncoder:
    return load_encoder(folder)


FLAGS = (
    "--config.tuned.epochs=12",
    "--config.tuned.learning_rate=0.01",
    "--config.tuned.head_learning_rate=0.05",
    "--config.tuned.held_back=1",
    "--config.tuned.dropout=0.0",
    "--config.encoder.length=12",
)


def reviewed(label: np.ndarray, groups: Any = ((1,),)) -> tuple[Corpus, list[str]]:
    """Return reviews of categories, 16 of each, which a word tells apart."""
    rng = np.random.default_rng(0)
    things = rng.choice(["phone", "screen"], len(label))
    texts = [f"the {one} is {('bad', 'good')[y]}" for one, y in zip(things, label, strict=True)]
    category = np.repeat(range(len(label) // 16), 16).tolist()
    return corpus_of(
        "abcdefg"[: len(label) // 16], groups, category, label.tolist(), texts, 2, "word"
    ), texts


LABEL = np.tile([0, 1], 24)


@pytest.mark.slow
def test_an_encoder_learns_from_reviews_of_sources_alone(
    encoder: PretrainedEncoder, folder: Path, tmp_path: Any
) -> None:
    """Faults: it learns the label of a held-out category, or of a source that was held back; the
    vectors are those of the encoder before its training; what is kept is no guide."""
    config = config_of(*FLAGS, f"--config.encoder.weights={folder}")
    corpus, texts = reviewed(LABEL)
    found = taught_encoder(config, encoder, corpus, texts, 1, tmp_path / "once")
    assert found.seed == 1 and found.others.reshape(3, 16).sum(1).tolist() == [0, 16, 16]
    assert (found.logits[found.others] > 0).tolist() == (LABEL[found.others] == 1).tolist()
    assert not found.logits[~found.others].any() and not found.vectors[~found.others].any()
    before = encoder.encode([texts[row] for row in np.flatnonzero(found.others)])
    assert np.abs(before - found.vectors[found.others]).max() > 0.1
    unread = corpus._replace(label=np.where(found.others, 1 - LABEL, LABEL))
    again = taught_encoder(config, encoder, unread, texts, 1, tmp_path / "unread")
    np.testing.assert_array_equal(again.logits, found.logits)
    read = corpus._replace(label=np.where(found.others, LABEL, 1 - LABEL))
    turned = taught_encoder(config, encoder, read, texts, 1, tmp_path / "read")
    assert (turned.logits[found.others] > 0).tolist() == (LABEL[found.others] == 0).tolist()
    assert load(tmp_path / "once").serving.keys() == {"sentiment"}

    # Its work folder goes on for a table with other shots, and not for other reviews.
    shots = config_of(*FLAGS, f"--config.encoder.weights={folder}", "--config.shots=0,3")
    kept = taught_encoder(shots, encoder, corpus, texts, 1, tmp_path / "once")
    np.testing.assert_array_equal(kept.logits, found.logits)
    with pytest.raises(CheckpointError, match="training"):
        taught_encoder(config, encoder, read, texts, 1, tmp_path / "once")


def test_the_head_reads_the_vectors_as_the_guide_does(encoder: PretrainedEncoder) -> None:
    """Faults: trained layers are not those that make the vectors; the head misses the norm before
    it; padding is pooled."""
    config = config_of("--config.encoder.length=12", "--config.tuned.layers=1")
    tuned = tuned_guide(config, "tuned", encoder, "sentiment", sentiment)
    rng = np.random.default_rng(1)
    params: Any = init_params(tuned.model, jax.random.key(0), tuned.known)
    moved = jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape), params)
    params = {**jax.tree.map(jnp.float32, moved), FROZEN: tuned.frozen}
    texts = ["the phone is good", "bad", "the screen is not good is not bad"]
    vectors = tuned.encoder_of(params).encode(texts)
    found = tuned_sentiment.positive_logits(tuned.model, params, vectors)
    batch = {"tokens": jnp.asarray(encoder.guide_tokenizer.encode(texts, 12).tokens)}
    encoded = tuned.problem.encode(params, batch, None, None)
    logits = tuned.problem.predict(params, encoded, batch, None)["logits"]
    np.testing.assert_allclose(found, logits[:, 1] - logits[:, 0], atol=1e-4)
    assert tuned.encoder_of(params).fingerprint != encoder.fingerprint


def test_no_token_is_hidden_from_a_pretrained_encoder(encoder: PretrainedEncoder) -> None:
    """Fault: what helps an encoder that learns from nothing is done to this one, which it harms."""
    config = config_of("--config.encoder.length=12", "--config.tuned.dropout=0.0")
    tuned = tuned_guide(config, "tuned", encoder, "sentiment", sentiment)
    meta = {"params": init_params(tuned.model, jax.random.key(0), tuned.known)}
    tokens = encoder.guide_tokenizer.encode(["the phone is good", "the screen is bad"], 12).tokens
    data = {"tokens": tokens, "label": np.array([1, 0], np.int32), "order": np.array([[0, 1]])}
    gradient, data = tuned_sentiment.gradient_of(tuned), jax.tree.map(jnp.asarray, data)
    first, second = (gradient(meta, data, jax.random.key(i), jnp.zeros(())) for i in (0, 1))
    assert first[0][0] == second[0][0]


def test_choices_are_made_on_sources_that_were_held_back() -> None:
    """Faults: a share or a rule is chosen on logits of reviews that taught the encoder; the choices
    of one seed take the place of another's."""
    corpus, _ = reviewed(LABEL)
    rng = np.random.default_rng(2)
    corpus = corpus._replace(vectors=rng.normal(size=(48, 6)).astype(np.float32))
    others = corpus.category > 0
    vectors = rng.normal(size=(48, 6)) + LABEL[:, None]
    logits = 2.0 * LABEL - 1 + rng.normal(size=48)

    (known,) = source_heads.methods_of(config_of(), corpus, corpus, {})["n-grams"]
    (ngrams,) = known.logits

    def chosen(noise: np.ndarray) -> Any:
        odd = vectors + noise[:, None] * ~others[:, None]
        taught = Taught(3, others, np.where(others, logits, noise), odd)
        choices: dict[str, Any] = {}
        sure = taught._replace(seed=4, logits=np.where(others, 200.0 * LABEL - 100, noise))
        both = [taught, sure]
        methods = source_heads.methods_of(config_of(), corpus, corpus, choices, both)
        of_seeds = methods["fine-tuned encoder + n-grams"]
        assert [known.seed for known in of_seeds] == [3, 4]
        rules = [reviews.rule_for(config_of(), corpus, known, 0, 2, {}) for known in of_seeds]
        return np.stack([known.logits[0][others] for known in of_seeds]), choices, rules

    first = chosen(np.zeros(48))
    # Of reviews that taught the encoder, only the largest share of n-grams would be right.
    for noise in (np.full(48, 50.0), -0.75 * ngrams):
        second = chosen(noise)
        np.testing.assert_array_equal(first[0], second[0])
        assert first[1:] == second[1:]
    shares = [first[1]["b"][f"fine-tuned encoder + n-grams, seed {seed}"] for seed in (3, 4)]
    assert shares[0]["share"] > shares[1]["share"]


def test_an_encoder_is_trained_for_one_group(encoder: PretrainedEncoder, tmp_path: Any) -> None:
    """Fault: one encoder, which has read the labels of a category, answers for it too."""
    corpus, texts = reviewed(LABEL, ((0,), (1,)))
    with pytest.raises(ConfigError, match="name them in config.held_out, or set it to 0"):
        taught_encoder(config_of(*FLAGS), encoder, corpus, texts, 0, tmp_path)


def test_each_seed_holds_back_the_next_sources() -> None:
    """Faults: all seeds hold back the same; a category that is held out anyway is among them; none
    is left to learn from."""
    corpus, _ = reviewed(np.tile([0, 1], 48), ((1, 4),))

    def of(count: int, seed: int) -> list[int]:
        return held_back(config_of(f"--config.tuned.held_back={count}"), corpus, seed).tolist()

    assert [of(1, seed) for seed in range(5)] == [[0], [2], [3], [5], [0]]
    assert [of(3, seed) for seed in range(2)] == [[0, 2, 3], [5, 0, 2]]
    with pytest.raises(ConfigError, match="held_back is 4: there are 4 categories"):
        of(4, 0)


@given(st.integers(1, 40), st.integers(1, 7), st.floats(0.1, 4.0))
def test_an_epoch_reads_each_review_once(count: int, batch: int, epochs: float) -> None:
    """Faults: a review is read twice in an epoch while another is not; a step has too few; the step
    that the share of training stands for is another one."""
    batch = min(batch, count)
    order = batches_of(count, batch, epochs, 0)
    assert order.shape == (max(batch, int(epochs * count)) // batch, batch)
    often = np.bincount(order.ravel(), minlength=count)
    assert often.max() <= -(-order.size // count) and often.min() >= order.size // count
    steps = len(order)
    progress = np.arange(steps, dtype=np.float32) / np.float32(steps)
    assert np.array_equal(np.round(progress * np.float32(steps)), np.arange(steps))
