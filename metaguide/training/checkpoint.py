"""Checkpoints of a training state on disk; the only file that knows Orbax."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metaguide.optimizers import Rule, stored
from metaguide.parallel import is_key, place
from metaguide.training.state import TrainState
from metaguide.types import Params

FOLDER = "checkpoints"
"""Name of the folder of checkpoints inside a stage's work folder; it has one folder per step."""

KEPT = 2

About = Mapping[str, str | int]
"""A checkpoint's description of its training, such as stage, learner, seed, config."""


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or of another model."""


def save(folder: Path, state: TrainState, about: About = MappingProxyType({})) -> None:
    """Write `state` atomically as the checkpoint of its step, and keep the last two.

    An existing checkpoint of that step is replaced.

    If there are several processes, all have to call it with the same folder; they write one
    checkpoint.

    Args:
        folder: the folder of checkpoints; created if missing.
        state: the state to save.
        about: the description of its training, which `restore` compares.

    Raises:
        CheckpointError: it cannot be written; earlier checkpoints are kept.
    """
    import orbax.checkpoint as ocp  # takes a second to import

    step, tree = int(state.step), _writable(state._asdict())
    metadata = {"crc32": _checksums(tree), "about": dict(about)}
    try:
        with _manager(folder, writes=True) as manager:
            if step in manager.all_steps():
                manager.delete(step)  # Orbax would silently keep it
            content = ocp.args.PyTreeSave(tree, custom_metadata=metadata)
            manager.save(step, args=content)
    # Each library below raises its own error for a full disk or an unwritable folder.
    except Exception as error:
        raise CheckpointError(
            f"{folder / str(step)}: this checkpoint cannot be written ({_in_a_line(error)}); see "
            "whether the disk is full or the folder may not be written; what was kept before it "
            "is whole, and the same command goes on from there"
        ) from error


def latest(folder: Path) -> int | None:
    """Return the step of the newest checkpoint in `folder`, or None if there is none.

    Raises:
        CheckpointError: `folder` is not a folder, or cannot be read.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: it is no folder, and checkpoints are kept there; move it away"
        )
    try:
        with _manager(folder) as manager:
            return manager.latest_step()
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error})") from error


def restore(
    folder: Path,
    like: TrainState,
    step: int | None = None,
    about: About = MappingProxyType({}),
) -> TrainState:
    """Read a checkpoint.

    Args:
        folder: the folder of checkpoints.
        like: a state of the same structure, shapes and placement; its values are not read.
        step: the checkpoint's step; None for the newest.
        about: the description of the training to resume, as given to `save`. An older checkpoint
            without a description is accepted.

    Returns:
        The stored state, with the placement of `like`.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or it is of another model or
            another training.
    """
    return TrainState(**_restore(folder, like._asdict(), prefix="", step=step, about=about))


def restore_meta(folder: Path, like: Params, about: About = MappingProxyType({})) -> Params:
    """Read a stage's meta-parameters from its newest checkpoint, regardless of its optimizer.

    Args:
        folder: the stage's work folder, or the folder of checkpoints in it.
        like: meta-parameters of the same structure, shapes and placement; values are not read.
        about: as in `restore`.

    Returns:
        The stored meta-parameters.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or it is of another model or
            another training.
    """
    inside = folder / FOLDER
    folder = inside if inside.exists() else folder
    part = {"params": {"meta": like}}
    return _restore(folder, part, prefix="params.meta.", about=about)["params"]["meta"]


def restore_stage(
    folder: Path, like: Params, about: About = MappingProxyType({})
) -> tuple[Params, Rule | None]:
    """Read a stage's meta-parameters, and the rule of its learned optimizer if it trained one.

    Args:
        folder: the stage's work folder.
        like: {"params": ...} of the same shapes and placement; values are not read.
        about: as in `restore`.

    Returns:
        The meta-parameters, and the rule or None.

    Raises:
        CheckpointError: there is no checkpoint, it is of another model, or it is damaged.
        StoredError: the file next to it that describes the rule is damaged.
    """
    if not (folder / stored.FILE).is_file():
        return restore_meta(folder, like, about), None
    rule, theta, _ = stored.load(folder)
    return restore_meta(folder, {**like, "rule": theta}, about), rule


def _manager(folder: Path, *, writes: bool = False) -> Any:
    import orbax.checkpoint as ocp

    # Orbax removes leftovers of killed saves in its own thread: only one manager at a time may.
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEPT,
        create=writes,
        cleanup_tmp_directories=writes,
        enable_async_checkpointing=False,
    )
    return ocp.CheckpointManager(
        folder.absolute(), options=options, item_handlers=ocp.PyTreeCheckpointHandler()
    )


def _restore(folder: Path, like: Any, *, prefix: str, about: About, step: int | None = None) -> Any:
    """Read the part of a checkpoint that `like` describes, whose leaves have `prefix`."""
    import orbax.checkpoint as ocp

    step = latest(folder) if step is None else step
    if step is None:
        raise CheckpointError(
            f"{folder}: there is no checkpoint; give the work folder of a stage that has run"
        )
    target = _writable(like)
    with _manager(folder) as manager:
        try:
            _read_through(folder / str(step) / "default")
            metadata = manager.item_metadata(step)
            if metadata is None:
                raise FileNotFoundError("the description of its arrays is lost")
            stored = by_name(metadata.tree)
            checksums = dict(metadata.custom_metadata["crc32"])
            of = dict(metadata.custom_metadata.get("about", {}))
        except Exception as error:
            raise _damaged(folder, step, error) from error
        _check_about(folder / str(step), of, about)
        _check_shapes(folder / str(step), stored, by_name(target), prefix)
        try:
            tree = manager.restore(
                step,
                args=ocp.args.PyTreeRestore(
                    target,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                    partial_restore=True,
                ),
            )
        except Exception as error:
            raise _damaged(folder, step, error) from error
    leaves = by_name(tree)
    for name, value in _checksums(tree).items():
        if checksums.get(name) != value:
            raise _damaged(folder, step, ValueError(f"{name} has other bytes than were saved"))
        leaf = leaves[name]
        if name.startswith("params.") and not np.isfinite(leaf).all():
            raise _damaged(folder, step, ValueError(f"{name} is not finite"))
    if "step" in leaves and int(leaves["step"]) != step:
        raise _damaged(folder, step, ValueError(f"it is of step {int(leaves['step'])}"))
    return jax.tree.map(_placed, tree, like)


def _read_through(folder: Path) -> None:
    """Read every byte once, one after the other.

    Orbax reads all arrays at the same time. If one fails, the others print their tracebacks from
    their own threads.
    """
    import tensorstore

    place = f"file://{folder.absolute()}/"
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": place}).result()
    names = store.list().result()
    if not names:
        raise FileNotFoundError("the list of its arrays is lost")
    for name in names:
        store.read(name).result()


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _check_about(folder: Path, stored: About, wanted: About) -> None:
    """Raise a CheckpointError if a checkpoint is of another training."""
    other = [
        f"{name} is {stored[name]!r} in the checkpoint and {value!r} in this run"
        for name, value in wanted.items()
        if name in stored and stored[name] != value
    ]
    if other:
        raise CheckpointError(
            f"{folder}: a checkpoint of another training: {'; '.join(other)}; put it back where it "
            "was written, or delete this folder and train again"
        )


def _damaged(folder: Path, step: int, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{folder / str(step)}: this checkpoint is damaged ({_in_a_line(error)}); delete this "
        "folder, and the stage goes on from the checkpoint before it"
    )


def _check_shapes(
    folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str
) -> None:
    """Raise a CheckpointError at the first leaf that only one side has, or that differs."""
    stored = {name: leaf for name, leaf in stored.items() if name.startswith(prefix)}
    # The model first: the optimizer's state only mirrors it.
    for name in sorted([*wanted, *stored], key=lambda name: not name.startswith("params.")):
        here, there = _shape(stored.get(name)), _shape(wanted.get(name))
        if here != there:
            raise CheckpointError(
                f"{folder}: a checkpoint of another model: {name} is {here} in the checkpoint and "
                f"{there} in this run; use the settings it was trained with, or another folder"
            )


def _shape(leaf: Any) -> str:
    return "absent" if leaf is None else f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"


def by_name(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree keyed by their path, such as "encoder.bias"."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _writable(tree: Any) -> Any:
    """Return keys as their data, and arrays complete in this process as numpy: 3 times as fast.

    If several processes hold a complete array, Orbax lets the first one write it.
    """

    def plain(leaf: Any) -> Any:
        leaf = jax.random.key_data(leaf) if is_key(leaf) else jnp.asarray(leaf)
        whole = leaf.is_fully_addressable or leaf.is_fully_replicated
        return np.asarray(leaf) if whole else leaf

    return jax.tree.map(plain, tree)


def _checksums(tree: Any) -> dict[str, Any]:
    """Return the CRC-32 of each leaf: Orbax detects a truncated file but not a changed byte."""
    return {
        name: zlib.crc32(np.ascontiguousarray(leaf).tobytes())
        for name, leaf in by_name(tree).items()
        if isinstance(leaf, np.ndarray)
    }


def _placed(leaf: Any, like: Any) -> jax.Array:
    if is_key(like):
        leaf = jax.random.wrap_key_data(jnp.asarray(leaf), impl=jax.random.key_impl(like))
    if isinstance(like, jax.Array) and like.committed:
        return place(leaf, like.sharding)
    return jnp.asarray(leaf)
