"""A saved guide on a pretrained encoder: by reference, by copy, moved, and with another one."""

import shutil
import warnings
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import metaguide
from metaguide.data.catalogue import Domain, Interaction, Question
from metaguide.data.histories import History
from metaguide.guide import Guide, description_of, model_of, reading_of
from metaguide.models.encoder import FROZEN
from metaguide.models.tuned import Tuning
from metaguide.pretrained import EncoderError, PretrainedEncoder, load_encoder, tuned_params
from metaguide.tasks import Serving
from metaguide.training.checkpoint import CheckpointError
from tests.pretrained.conftest import write
from tests.pretrained.test_guide_on_encoder import PRODUCTS, REVIEWS
from tests.test_guide import RUN, drawn

DOMAIN = Domain(
    "shop",
    PRODUCTS,
    REVIEWS,
    questions=(Question("q", "not good", "the phone is good", (4, 9)),),
    interactions=(Interaction("u", "p1", 1.0), Interaction("v", "p1", 1.0)),
)
BATCHES = (PRODUCTS, REVIEWS, [History("u", ("p0",)), History("v", ())])


def adapted_to(guide, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return guide.adapt(DOMAIN, **{"shots": 1, "unlabelled": 1, **arguments})


def answers(adapted):
    return [adapted.predict(batch) for batch in BATCHES]


@pytest.mark.slow
def test_a_guide_without_training_is_kept_with_its_encoder_or_without(tmp_path, monkeypatch):
    """Faults: a megabyte of weights is in every guide; a guide that is moved with its encoder looks
    for it elsewhere; another encoder answers; loading computes vectors."""
    encoder = write(tmp_path / "encoder", "bert")
    monkeypatch.chdir(tmp_path)
    before = adapted_to(metaguide.from_encoder("encoder", prefix="the ", length=20))
    expected = answers(before)
    before.save("plain.guide")
    before.save("whole.guide", with_encoder=True)
    assert not (tmp_path / "plain.guide" / "encoder").exists()
    with monkeypatch.context() as patch:
        patch.setattr(PretrainedEncoder, "forward", None)
        patch.chdir("/")
        after = metaguide.load(tmp_path / "plain.guide")
    assert answers(after) == expected and after.notes == before.notes
    assert [one.is_trained for one in after.guide.serving.values()] == [False] * 4
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    shutil.move(encoder, moved)
    with pytest.raises(CheckpointError, match=r"encoder.*no such folder.*load\(run, encoder=FOLD"):
        metaguide.load("plain.guide")
    cached = metaguide.load("plain.guide", encoder=moved, cache="vectors")
    assert cached.predict(REVIEWS) == expected[1] and (tmp_path / "vectors").exists()
    write(encoder, "e5")
    for guide in ("plain.guide", "whole.guide"):
        with pytest.raises(CheckpointError, match="holds another encoder than the guide reads"):
            metaguide.load(guide, encoder=encoder)
    with pytest.raises(EncoderError, match="holds another encoder than the guide reads"):
        before.save("other.guide", with_encoder=True)
    assert not (tmp_path / "other.guide").exists()
    shutil.move("whole.guide", moved.parent / "whole.guide")
    whole = metaguide.load(moved.parent / "whole.guide")
    assert whole.predict(REVIEWS) == expected[1]


@pytest.mark.slow
def test_a_guide_that_holds_its_encoder_keeps_it(tmp_path):
    """Faults: a guide that is saved to where it came from loses the encoder that it reads there; a
    damaged copy of the encoder is read."""
    encoder, path = write(tmp_path / "encoder", "bert"), tmp_path / "garden.guide"
    begun = adapted_to(metaguide.from_encoder(encoder))
    begun.save(path, with_encoder=True)
    shutil.rmtree(encoder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        further = metaguide.load(path).adapt(support=[replace(REVIEWS[2], text="screen")])
    further.save(path)
    found = metaguide.load(path).predict(REVIEWS)
    assert found == further.predict(REVIEWS) != begun.predict(REVIEWS)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        content = (path / "encoder" / name).read_bytes()
        middle = len(content) // 2
        for bad in (content[:middle], content[:middle] + b"~" + content[middle + 1 :]):
            (path / "encoder" / name).write_bytes(bad)
            with pytest.raises(CheckpointError, match="garden.guide.*encoder"):
                metaguide.load(path)
        (path / "encoder" / name).write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("trains", ["lora", "last", "all"])
def test_a_guide_whose_encoder_is_trained_is_kept_without_what_is_frozen(tmp_path, trains):
    """Faults: frozen weights are stored, or restored from a state; trained ones are not."""
    encoder = load_encoder(write(tmp_path / "encoder", "bert"), length=20)
    config = replace(
        RUN,
        **{**description_of(encoder, tmp_path / "encoder"), "encoder_train": trains},
        encoder_rank=2,
        encoder_layers=1,
    )
    tokenizer, tuning = encoder.guide_tokenizer, Tuning(trains, 2, 1)
    model = model_of(config, tokenizer, encoder)
    known = tuned_params(encoder, tuning)
    params = {**drawn(model, 0), **{name: one for name, one in known.items() if name == FROZEN}}
    serving = {
        "sentiment": Serving({"params": params}, "fine-tuning", 0.1, 1),
        "questions": Serving({"params": params}, "head-only", 0.1, 1),
    }
    before = adapted_to(Guide(model, reading_of(config, tokenizer), serving, config), unlabelled=0)
    before.save(tmp_path / "garden.guide")
    after = metaguide.load(tmp_path / "garden.guide")
    for batch in (REVIEWS, DOMAIN.questions):
        assert after.predict(batch) == before.predict(batch)
    found = after.guide.serving["sentiment"].meta["params"]
    jax.tree.map(np.testing.assert_array_equal, found, params)
    stored = load_file(tmp_path / "garden.guide" / "arrays.safetensors")
    kept = {array.tobytes() for array in stored.values()}
    frozen = [np.asarray(leaf) for leaf in jax.tree.leaves(known.get(FROZEN, {})) if leaf.ndim > 1]
    assert bool(frozen) == (trains != "all")
    assert not any(leaf.tobytes() in kept for leaf in frozen)
    assert not (tmp_path / "garden.guide" / "tokenizer.json").exists()
