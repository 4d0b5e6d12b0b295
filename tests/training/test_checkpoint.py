import errno
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest

from metaguide.training import checkpoint
from metaguide.training.checkpoint import CheckpointError
from metaguide.training.state import TrainState


def state_at(step, *, width=3, optimizer=None, dtype=jnp.float32, extra=False):
    key = jax.random.key(step)
    meta = {"text": {"kernel": jax.random.normal(key, (4, width), dtype)}, "head": jnp.ones((2,))}
    meta["table"] = jax.random.normal(key, (40, 30))  # too large to lie among the names
    if extra:
        meta["tail"] = jnp.zeros((1,))
    params = {"meta": meta, "weighting": {}}
    optimizer = optimizer or optax.adam(0.1)
    return TrainState(jnp.asarray(step, jnp.int32), params, optimizer.init(params), key, {})


def same_bits(a, b):
    def data(leaf):
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if key else leaf)

    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(
        data(x).dtype == data(y).dtype and data(x).tobytes() == data(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_restores_every_bit_of_the_newest(tmp_path):
    """Faults: an older step is read, optimizer tuples turn into dicts, bfloat16 is widened, the
    key comes back as numbers or as the key of `like`."""
    noisy = optax.chain(optax.adam(0.1), optax.add_noise(0.1, 0.5, jax.random.key(7)))
    for step in (1, 10, 9):
        checkpoint.save(tmp_path, state_at(step, optimizer=noisy, dtype=jnp.bfloat16))
    stored = state_at(10, optimizer=noisy, dtype=jnp.bfloat16)
    restored = checkpoint.restore(tmp_path, state_at(0, optimizer=noisy, dtype=jnp.bfloat16))
    assert checkpoint.latest(tmp_path) == 10
    assert same_bits(restored, stored)


def test_keeps_the_last_two(tmp_path):
    """Fault: every checkpoint of a long stage stays on the disk, or only one does."""
    for step in (2, 4, 6):
        checkpoint.save(tmp_path, state_at(step))
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["4", "6"]


def test_places_leaves_as_the_running_state_has_them(tmp_path):
    """Fault: a restored state lies on one device, and the step compiles again or fails."""
    mesh = jax.make_mesh((8,), ("tasks",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = jax.device_put(state_at(1), everywhere)
    checkpoint.save(tmp_path, state)
    restored = checkpoint.restore(tmp_path, state)
    assert all(leaf.sharding == everywhere for leaf in jax.tree.leaves(restored))
    loose = checkpoint.restore(tmp_path, state_at(0))
    assert not any(leaf.committed for leaf in jax.tree.leaves(loose))
    assert same_bits(restored, loose)


def test_meta_parameters_are_read_without_the_optimizer(tmp_path):
    """Fault: a stage can read the one before only if it knows how that one was optimized."""
    stored = state_at(5, optimizer=optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9)))
    checkpoint.save(tmp_path / checkpoint.FOLDER, stored)
    like = state_at(0).params["meta"]
    assert same_bits(checkpoint.restore_meta(tmp_path, like), stored.params["meta"])
    inside = tmp_path / checkpoint.FOLDER
    assert same_bits(checkpoint.restore_meta(inside, like), stored.params["meta"])


@pytest.mark.parametrize("make", [lambda folder: folder / "none", lambda folder: folder])
def test_missing_checkpoint_is_named(tmp_path, make):
    """Fault: a wrong init_from silently starts from scratch, or shows an Orbax traceback."""
    assert checkpoint.latest(make(tmp_path)) is None
    with pytest.raises(CheckpointError, match=f"{tmp_path}.*no checkpoint"):
        checkpoint.restore_meta(make(tmp_path), {})


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"width": 5}, r"params\.meta\.text\.kernel is float32\[4, 3\].* and float32\[4, 5\]"),
        ({"dtype": jnp.bfloat16}, r"kernel is float32\[4, 3\].* and bfloat16\[4, 3\]"),
        ({"extra": True}, r"params\.meta\.tail is absent .* and float32\[1\]"),
        ({"optimizer": optax.sgd(0.1)}, r"optimizer\.0\.count is int32\[\] .* and absent"),
    ],
)
def test_checkpoint_of_another_model_names_the_first_difference(tmp_path, other, words):
    """Fault: a checkpoint of another model is sliced, padded or cast to fit, or fails unclearly."""
    checkpoint.save(tmp_path, state_at(3))
    with pytest.raises(CheckpointError, match=words) as error:
        checkpoint.restore(tmp_path, state_at(0, **other))
    assert str(tmp_path / "3") in str(error.value)
    if "optimizer" not in other:
        with pytest.raises(CheckpointError, match=words):
            checkpoint.restore_meta(tmp_path, state_at(0, **other).params["meta"])


def test_group_that_the_run_does_not_know_is_another_model(tmp_path):
    """Fault: parameters of the checkpoint are dropped without a word."""
    checkpoint.save(tmp_path, state_at(3, extra=True))
    with pytest.raises(CheckpointError, match=r"params\.meta\.tail is float32\[1\] .* and absent"):
        checkpoint.restore_meta(tmp_path, state_at(0).params["meta"])


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    content = bytearray(file.read_bytes())
    if content:
        content[len(content) // 2] ^= 0xFF
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [cut, flip, lambda file: file.unlink()])
def test_damaged_file_never_gives_other_values(tmp_path, damage):
    """Faults: a file cut short, changed or lost gives wrong values, or an error of the library."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    stored = state_at(3)
    checkpoint.save(whole, stored)
    refused = 0
    for file in sorted(path for path in whole.rglob("*") if path.is_file()):
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(whole, broken)
        damage(broken / file.relative_to(whole))
        try:
            assert same_bits(checkpoint.restore(broken, state_at(0)), stored), file
        except CheckpointError as error:
            assert str(broken) in str(error) and "another model" not in str(error), file
            refused += 1
    assert refused >= 3  # at least the tree's description, the manifest and the values


def test_checkpoint_of_another_training_is_refused(tmp_path):
    """Faults: a checkpoint of another learner with the same shapes, of another seed or config is
    gone on from; one that was written before there was a word on it, or with more of them, is not
    read."""
    folder = tmp_path / checkpoint.FOLDER
    checkpoint.save(folder, state_at(3), {"learner": "anil", "seed": 1, "config": "ab"})
    like = state_at(0)
    checkpoint.restore(folder, like, about={"learner": "anil", "seed": 1, "device": "cpu"})
    words = f"{folder / '3'}: .*another training: learner is 'anil' in the .* and 'maml' in this"
    with pytest.raises(CheckpointError, match=words):
        checkpoint.restore(folder, like, about={"learner": "maml", "seed": 1})
    with pytest.raises(CheckpointError, match="seed is 1 in the checkpoint and 2"):
        checkpoint.restore_meta(tmp_path, like.params["meta"], {"seed": 2})
    checkpoint.save(folder, state_at(6))
    checkpoint.restore(folder, like, about={"learner": "maml"})


def test_a_file_where_checkpoints_belong_is_named(tmp_path):
    """Fault: the stage trains to its first checkpoint, and then fails with the library's error."""
    (tmp_path / checkpoint.FOLDER).write_text("")
    for reads in (
        lambda: checkpoint.latest(tmp_path / checkpoint.FOLDER),
        lambda: checkpoint.restore_meta(tmp_path, {}),
    ):
        with pytest.raises(CheckpointError, match=f"{tmp_path / checkpoint.FOLDER}: it is no fold"):
            reads()


def test_a_checkpoint_that_cannot_be_written_leaves_those_before_it(tmp_path, monkeypatch):
    """Faults: a full disk is a traceback of the library; the good checkpoint is lost."""
    checkpoint.save(tmp_path, state_at(3))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(orbax.checkpoint.CheckpointManager, "save", full)
        with pytest.raises(CheckpointError, match=r"6: .*cannot be written .*No space left"):
            checkpoint.save(tmp_path, state_at(6))
    assert checkpoint.latest(tmp_path) == 3
    assert same_bits(checkpoint.restore(tmp_path, state_at(0)), state_at(3))


def test_killed_save_leaves_the_checkpoint_before_it(tmp_path):
    """Fault: what a killed run had half written counts as a checkpoint, or blocks the next save."""
    checkpoint.save(tmp_path, state_at(3))
    half = tmp_path / "6.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "3", half)
    assert checkpoint.latest(tmp_path) == 3
    checkpoint.save(tmp_path, state_at(6))
    assert same_bits(checkpoint.restore(tmp_path, state_at(0)), state_at(6))
    assert not half.exists()


def test_a_step_that_is_saved_again_is_replaced(tmp_path):
    """Fault: the first state of a step is kept, and the second one is lost without a word."""
    first, second = state_at(4), state_at(4)._replace(key=jax.random.key(9))
    checkpoint.save(tmp_path, first)
    checkpoint.save(tmp_path, second)
    assert same_bits(checkpoint.restore(tmp_path, state_at(0)), second)


@pytest.mark.parametrize("folder", [3, 5])
def test_a_checkpoint_of_another_step_is_refused(tmp_path, folder):
    """Fault: the folder says one step and the state another, and a run goes on to another end."""
    checkpoint.save(tmp_path, state_at(4))
    shutil.move(tmp_path / "4", tmp_path / str(folder))
    with pytest.raises(CheckpointError, match="it is of step 4"):
        checkpoint.restore(tmp_path, state_at(0))


def test_parameters_that_are_not_finite_are_refused(tmp_path):
    """Fault: a checkpoint of NaN has a right checksum, and a run goes on from it."""
    state = state_at(4)
    spoiled = {**state.params["meta"], "head": jnp.array([1.0, jnp.nan])}
    checkpoint.save(tmp_path, state._replace(params={"meta": spoiled, "weighting": {}}))
    with pytest.raises(CheckpointError, match=r"params\.meta\.head is not finite"):
        checkpoint.restore(tmp_path, state_at(0))


@pytest.mark.parametrize("checksums", ["list", "absent", "short"])
def test_checksums_that_are_not_there_are_an_error(tmp_path, checksums):
    """Fault: what has no checksum is taken as it is, or a list of them ends in a traceback."""
    checkpoint.save(tmp_path, state_at(4))
    (path,) = (path for path in (tmp_path / "4").rglob("_METADATA") if "crc32" in path.read_text())
    text = json.loads(path.read_text())
    known = text["custom_metadata"]
    known["crc32"] = {"list": [1, 2], "absent": {}, "short": {"step": known["crc32"]["step"]}}[
        checksums
    ]
    path.write_text(json.dumps(text))
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.restore(tmp_path, state_at(0))
