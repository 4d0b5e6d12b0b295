"""An adapted guide as a folder; all reading and writing of it happens here.

    garden.guide/
        guide.json           what the guide is and came from, and the checksums of the other files
        arrays.safetensors   parameters, adapted states and contexts, each array once
        tokenizer.json       the tokenizer, unless it is that of a pretrained encoder
        products/            the products of the domain, in the catalogue format
        support/             the examples that were adapted to, in the catalogue format
        unlabelled/          products that were read without their labels, in the catalogue format
        unlabelled.jsonl     reviews that were read without their labels
        encoder/             the pretrained encoder, if it was saved with the guide

Nothing else of the domain is kept: no other reviews or questions, and no interactions. Reading runs
no code from the folder, and every file has its checksum in `guide.json`, which has its own. The
structure of an adapted state is not stored: adaptation to the stored examples is traced for it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy

from metaguide import run_config
from metaguide.data.catalogue import (
    CatalogueError,
    Domain,
    Product,
    Question,
    Review,
    read_domain,
    write_domain,
)
from metaguide.data.rows import REVIEW, checked_rows, read_rows
from metaguide.data.tokenizer import Tokenizer
from metaguide.files import (
    FileFault,
    atomic_folder,
    read_json,
    read_regular,
    would_be_lost,
    write_json,
)
from metaguide.models.encoder import FROZEN
from metaguide.models.guide import GuideModel, init_params
from metaguide.optimizers import Rule
from metaguide.optimizers.stored import RULES, rule_of
from metaguide.pretrained import copy_encoder
from metaguide.run_config import MOST_STEPS, WIDEST, FieldError, Range, RunConfig, Served
from metaguide.tasks import TASKS, Adapted, Server, Serving
from metaguide.training.checkpoint import CheckpointError, by_name

FILE, ARRAYS, TOKENIZER = "guide.json", "arrays.safetensors", run_config.TOKENIZER
PRODUCTS, SUPPORT, UNLABELLED, ENCODER = "products", "support", "unlabelled", "encoder"
REVIEWS = f"{UNLABELLED}.jsonl"
"""The files and folders of a saved guide."""

VERSION = 4
"""Version of the folder; it increases when a field is added or changes its meaning."""

MOST_BYTES = 2**33
"""Limit on the bytes of a file that are read."""

AGAIN = "copy the folder again, or save the guide again"


class Contents(NamedTuple):
    """What a saved guide keeps of an adapted one.

    Attributes:
        config: the description of the guide's model and reading.
        source: the folder that the guide was loaded from.
        tokenizer: the guide's own tokenizer, if it has one.
        serving: the parameters and the method that serve each task.
        domain: the domain.
        shots: number of shots.
        adapted: the tasks that are answered.
        notes: what could not be adapted to, keyed by task.
        waiting: examples that were too few to adapt to, keyed by task.
    """

    config: RunConfig
    source: str
    tokenizer: Tokenizer | None
    serving: Mapping[str, Serving]
    domain: Domain
    shots: int
    adapted: Mapping[str, Adapted]
    notes: Mapping[str, tuple[str, ...]]
    waiting: Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Saved:
    """A saved guide, read and checked.

    Attributes:
        folder: where it is.
        config: the description of the guide's model and reading.
        source: the folder that the guide was loaded from.
        domain: the domain, with what is kept of it.
        shots: number of shots.
        notes: what could not be adapted to, keyed by task.
    """

    folder: Path
    config: RunConfig
    source: str
    domain: Domain
    shots: int
    notes: Mapping[str, tuple[str, ...]]
    _tasks: Mapping[str, Mapping[str, Any]] = field(repr=False)
    _arrays: Mapping[str, Any] = field(repr=False)
    _same: Mapping[str, str] = field(repr=False)
    _examples: Mapping[str, Mapping[type, tuple[Any, ...]]] = field(repr=False)

    def serving(self, model: GuideModel, frozen: Mapping[str, Any]) -> dict[str, Serving]:
        """Return the parameters and the method that serve each task.

        Args:
            model: the guide's model.
            frozen: the parameters that its pretrained encoder determines, {"frozen": ...} or {}.

        Raises:
            CheckpointError: the arrays are of another model.
        """
        with _faults_of(self.folder):
            known = {**self._arrays, **by_name(dict(frozen))}
            key = jax.eval_shape(jax.random.key, 0)
            params = jax.eval_shape(partial(init_params, model), key)
            serving = {}
            for task, one in self.config.serving.items():
                said = self._tasks[task]
                rule, like = None, {"params": params}
                if said["rule"] is not None:
                    rule = rule_of(said["rule"]["kind"], said["rule"]["settings"])
                    like["rule"] = jax.eval_shape(rule.init, key)
                meta = self._filled(known, task, "meta", like)
                serving[task] = Serving(
                    meta, one.method, one.learning_rate, one.steps, rule, said["is_trained"]
                )
            return serving

    def adapted(self, server: Callable[[str], Server]) -> dict[str, Adapted]:
        """Return the adapted tasks.

        Args:
            server: task -> the guide as the task sees it, with the parameters of `serving`.

        Raises:
            CheckpointError: the arrays or the examples are of another guide.
        """
        with _faults_of(self.folder):
            found = {}
            for task, said in self._tasks.items():
                if said["adapted"] is None:
                    continue
                of = server(task)
                params = of.serving.meta["params"]
                frozen = by_name({name: params[name] for name in (FROZEN,) if name in params})
                fill = partial(self._filled, {**self._arrays, **frozen}, task, "adapted")
                made = TASKS[task].asks
                support, others = (
                    self._examples[part].get(made, ()) for part in (SUPPORT, UNLABELLED)
                )
                support = tuple(one for one in support if one.id not in said["waiting"])
                one = TASKS[task].restore(of, self.domain, self.shots, support, others, fill)
                if _said_of(one) != said["adapted"]:
                    raise FileFault(f"the classes or examples of {task} are others")
                found[task] = one
            return found

    @property
    def waiting(self) -> dict[str, tuple[Any, ...]]:
        """Return the examples that were too few to adapt to, keyed by task."""
        kept = self._examples[SUPPORT]
        return {
            task: tuple(one for one in kept.get(TASKS[task].asks, ()) if one.id in said["waiting"])
            for task, said in self._tasks.items()
            if said["waiting"]
        }

    def _filled(self, known: Mapping[str, Any], task: str, part: str, like: Any) -> Any:
        """Return the arrays of a part of a task, given a pytree of their shapes."""
        leaves = []
        for name, leaf in by_name({task: {part: like}}).items():
            array = known.get(self._same.get(name, name))
            if array is None:
                raise FileFault(f"{name} is missing")
            if (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
                raise FileFault(
                    f"{name} is {array.dtype}{list(array.shape)}, not "
                    f"{leaf.dtype}{list(leaf.shape)}"
                )
            leaves.append(array)
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


def is_saved(folder: Path) -> bool:
    """Return whether a folder holds a saved guide, or a part of one."""
    return any(os.path.lexists(folder / name) for name in (FILE, ARRAYS))


def encoder_in(folder: Path) -> Path | None:
    """Return the folder of the pretrained encoder that was saved with a guide, if one was."""
    return folder / ENCODER if (folder / ENCODER).is_dir() else None


def write(contents: Contents, folder: Path, with_encoder: bool = False) -> None:
    """Write an adapted guide atomically.

    Args:
        contents: the guide.
        folder: the folder to write; an older saved guide there is replaced.
        with_encoder: whether to copy the pretrained encoder, which is referred to otherwise. It is
            copied anyway if it lies in the folder that is replaced.

    Raises:
        CheckpointError: there is something else in the folder, or it cannot be written.
        EncoderError: the pretrained encoder is no longer where it was read.
        ValueError: the guide holds what a folder cannot: a learned optimizer or a task that is not
            the library's own.
    """
    arrays, same = _arrays_of(contents)
    config = _config_of(contents)
    found = _fields_of(contents, config, same)
    domain, support, unlabelled = _kept_of(contents)
    reviews = unlabelled.reviews
    source = Path(config.encoder) if config.encoder_width else None
    inside = source is not None and source.resolve().is_relative_to(folder.resolve())
    try:
        check_replaceable(folder)
        with atomic_folder(folder) as new:
            # `save_file` would let nobody else read it, a server of another user among them.
            (new / ARRAYS).write_bytes(safetensors.numpy.save(arrays))
            if contents.tokenizer is not None:
                contents.tokenizer.save(new / TOKENIZER)
            for part in (domain, support, replace(unlabelled, reviews=())):
                if part.products or part.reviews or part.questions:
                    write_domain(part, new / part.name)
            if reviews:
                lines = (
                    json.dumps({"id": r.id, "text": r.text}, ensure_ascii=False) for r in reviews
                )
                (new / REVIEWS).write_text("\n".join(lines) + "\n", encoding="utf-8")
            found["files"] = {
                path.relative_to(new).as_posix(): _seal(path.read_bytes())
                for path in sorted(new.rglob("*"))
                if path.is_file()
            }
            if source is not None and (with_encoder or inside):
                copy_encoder(source, new / ENCODER, config.encoder_fingerprint)
            write_json(new / FILE, {"sha256": _digest(found), **found})
    except (OSError, CatalogueError) as error:
        raise CheckpointError(
            f"{folder}: cannot be written ({error}); make room, or give another folder"
        ) from error


def read(folder: Path) -> Saved:
    """Read a saved guide and check every file of it, except for its encoder.

    Args:
        folder: the folder that `write` wrote.

    Raises:
        CheckpointError: a file is missing or damaged, or of a newer version; the message names it.
    """
    found = _description(folder)
    with _faults_of(folder):
        config = run_config.from_fields(found["model"], folder / FILE, "save the guide again")
        if set(found["tasks"]) != set(config.serving):
            raise FileFault("its tasks are not those that are served")
        content = {name: _file(folder, name, seal) for name, seal in found["files"].items()}
        tops = {name.partition("/")[0] for name in content}
        try:
            arrays = safetensors.numpy.load(content.pop(ARRAYS))
        except KeyError:
            raise FileFault(f"it lists no {ARRAYS}") from None
        parts = {
            part: read_domain(folder / part) if part in tops else Domain(part)
            for part in (PRODUCTS, SUPPORT, UNLABELLED)
        }
        rows = read_rows(folder / REVIEWS) if REVIEWS in tops else ()
        reviews = tuple(Review(**row) for _, row in checked_rows(rows, REVIEW))
        parts[UNLABELLED] = replace(parts[UNLABELLED], reviews=reviews)
        return Saved(
            folder,
            config,
            found["origin"]["source"],
            replace(parts[PRODUCTS], name=found["domain"]),
            found["shots"],
            {task: tuple(said) for task, said in found["notes"].items()},
            found["tasks"],
            jax.device_put(arrays),
            found["same"],
            {part: _by_type(parts[part]) for part in (SUPPORT, UNLABELLED)},
        )


_TABLE = Range("a table", lambda value: isinstance(value, dict))
_TEXT = Range("a text", lambda value: isinstance(value, str) and len(value) <= 4096)
_FLAG = Range("true or false", lambda value: isinstance(value, bool))


def _whole(most: int) -> Range:
    return Range(
        f"a whole number from 0 to {most}", lambda value: type(value) is int and 0 <= value <= most
    )


def _table_of(what: str, holds: Callable[[Any], bool]) -> Range:
    return Range(
        f"a table of {what}", lambda value: _TABLE.holds(value) and all(map(holds, value.values()))
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_setting(value: Any) -> bool:
    # A rule's builder makes as many layers as it is told to.
    return isinstance(value, bool | str) or (
        isinstance(value, int | float) and abs(value) <= WIDEST // 16
    )


RANGES: Mapping[str, Range] = {
    "version": Range(str(VERSION), lambda value: type(value) is int and value == VERSION),
    "domain": _TEXT,
    "shots": _whole(MOST_STEPS),
    "model": _TABLE,
    "tasks": _table_of("tables", _TABLE.holds),
    "notes": _table_of("lists of texts", _are_texts),
    "origin": _table_of("texts", _TEXT.holds),
    "same": _table_of("texts", _TEXT.holds),
    "files": _table_of("tables", _TABLE.holds),
}
"""Valid values of the fields of the description, but its checksum."""

TASK_RANGES: Mapping[str, Range] = {
    "waiting": Range("a list of texts", _are_texts),
    "is_trained": _FLAG,
    "rule": Range("a table, or nothing", lambda value: value is None or _TABLE.holds(value)),
    "adapted": Range(
        "a table of lists of texts, or nothing",
        lambda value: value is None or RANGES["notes"].holds(value),
    ),
}
"""Valid values of the fields of a task."""

RULE_RANGES: Mapping[str, Range] = {
    "kind": Range(f"one of {', '.join(RULES)}", lambda value: value in tuple(RULES)),
    "settings": _table_of("numbers and texts", _is_setting),
}
"""Valid values of the fields of a learned optimizer's rule."""

ORIGIN_RANGES: Mapping[str, Range] = dict.fromkeys(("source", "saved", "metaguide", "jax"), _TEXT)
"""Valid values of the fields of where a guide came from."""

FILE_RANGES: Mapping[str, Range] = {"bytes": _whole(MOST_BYTES), "sha256": _TEXT}
"""Valid values of the fields of a file."""


def _check_fields(found: Mapping[str, Any]) -> None:
    """Check a description.

    Raises:
        FieldError: a field is missing, surplus or out of its range.
    """
    run_config.check_table("", found, RANGES)
    run_config.check_table("origin.", found["origin"], ORIGIN_RANGES)
    for task, one in found["tasks"].items():
        run_config.check_table(f"tasks.{task:.40}.", one, TASK_RANGES)
        if one["rule"] is not None:
            run_config.check_table(f"tasks.{task:.40}.rule.", one["rule"], RULE_RANGES)
    for name, one in found["files"].items():
        if not run_config.SERVING_RANGES["folder"].holds(name):
            raise FieldError("files", f"names {name!r:.60}; name files inside the folder")
        run_config.check_table(f"files.{name}.", one, FILE_RANGES)


def _description(folder: Path) -> dict[str, Any]:
    """Read and check the description, without its checksum."""
    path = folder / FILE
    try:
        found = read_json(path, run_config.MOST_BYTES)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; {AGAIN}") from error
    except FileFault as error:
        raise CheckpointError(f"{path}: {error}; {AGAIN}") from error
    written = found.get("version")
    if type(written) is int and written > VERSION:
        raise CheckpointError(
            f"{path}: version is {written}, and this metaguide reads {VERSION}; update metaguide"
        )
    if found.pop("sha256", None) != _digest(found):
        raise CheckpointError(f"{path}: it is not as it was written; {AGAIN}")
    try:
        _check_fields(found)
    except FieldError as error:
        raise CheckpointError(f"{path}: {error}, or save the guide again") from error
    return found


def _file(folder: Path, name: str, seal: Mapping[str, Any]) -> bytes:
    """Return the content of a file, which has to be as it was written."""
    path = folder / name
    try:
        content = read_regular(path, seal["bytes"])
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; {AGAIN}") from error
    except FileFault as error:
        raise CheckpointError(f"{path}: {error}; {AGAIN}") from error
    if _seal(content) != seal:
        raise CheckpointError(f"{path}: it is not as it was written; {AGAIN}")
    return content


@contextmanager
def _faults_of(folder: Path) -> Iterator[None]:
    """Raise what a description with a valid checksum may still cause as one error."""
    try:
        yield
    except CheckpointError:
        raise
    # Arrays and examples that were made to fit nothing raise errors of many kinds.
    except Exception as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(
            f"{folder / FILE}: it does not fit the files beside it ({said}); {AGAIN}"
        ) from error


def _arrays_of(contents: Contents) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays to store, keyed by name, and the stored name of those that repeat one.

    Arrays of the pretrained encoder count as stored.
    """
    serving, adapted = contents.serving, contents.adapted
    learned = {task: {"meta": one.meta} for task, one in serving.items()}
    states = {task: {"adapted": TASKS[task].arrays(one)} for task, one in adapted.items()}
    groups = [one.meta["params"] for one in serving.values() if FROZEN in one.meta["params"]]
    frozen = by_name({FROZEN: groups[0][FROZEN]}) if groups else {}
    stored: dict[str, np.ndarray] = {}
    same: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, leaf in {**frozen, **by_name(learned), **by_name(states)}.items():
        # Order, not ascontiguousarray: that would give a scalar an axis.
        array = np.asarray(leaf, order="C")
        key = array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest()
        if first.setdefault(key, name) != name:
            same[name] = first[key]
        elif name not in frozen:
            stored[name] = array
    return stored, same


def _config_of(contents: Contents) -> RunConfig:
    """Return the description of the guide, with what serves it now."""
    config = contents.config
    serving = {
        task: Served(".", one.method, float(one.learning_rate), one.steps)
        for task, one in contents.serving.items()
    }
    # A guide may be loaded from another working directory.
    encoder = os.path.abspath(config.encoder) if config.encoder_width else ""
    return replace(config, serving=serving, encoder=encoder)


def _fields_of(contents: Contents, config: RunConfig, same: dict[str, str]) -> dict[str, Any]:
    """Return the description, still without the files."""
    try:
        package = version("metaguide")
    except PackageNotFoundError:  # in a clone
        package = ""
    tasks = {
        task: {
            "is_trained": one.is_trained,
            "rule": None if one.rule is None else _rule_of(one.rule),
            "adapted": _said_of(contents.adapted[task]) if task in contents.adapted else None,
            "waiting": [example.id for example in contents.waiting.get(task, ())],
        }
        for task, one in contents.serving.items()
    }
    origin = {"source": contents.source, "saved": datetime.now(UTC).isoformat(timespec="seconds")}
    found = {
        "version": VERSION,
        "domain": contents.domain.name,
        "shots": contents.shots,
        # As it is read: lists in the place of tuples.
        "model": json.loads(json.dumps(run_config.as_fields(config))),
        "tasks": tasks,
        "notes": {task: list(said) for task, said in contents.notes.items()},
        "origin": {**origin, "metaguide": package, "jax": jax.__version__},
        "same": same,
        "files": {},
    }
    _check_fields(found)
    return found


def _rule_of(rule: Rule) -> dict[str, Any]:
    if rule.kind not in RULES:
        raise ValueError(
            f"{rule.name} makes the steps, which is none of {', '.join(RULES)}; only a guide with "
            "one of these can be saved"
        )
    return {"kind": rule.kind, "settings": dict(rule.settings)}


def _said_of(adapted: Adapted) -> dict[str, list[str]]:
    """Return the classes of a task, and the ids of its examples."""
    return {
        "classes": list(adapted.classes),
        SUPPORT: list(adapted.chosen),
        UNLABELLED: [one.id for one in adapted.unlabelled],
    }


def _kept_of(contents: Contents) -> tuple[Domain, Domain, Domain]:
    """Return what is kept of the domain, the support and what was read without labels.

    Products name no categories but their own, so that one of each is enough without rankings.
    """
    products = contents.domain.products
    if not any(TASKS[task].is_ranking for task in contents.adapted):
        products = tuple({p.category: p for p in products if p.category is not None}.values())
    given = [one.support for one in contents.adapted.values()]
    support = _domain_of(SUPPORT, [*given, *contents.waiting.values()])
    others = _domain_of(UNLABELLED, (one.unlabelled for one in contents.adapted.values()))
    others = replace(others, products=tuple(replace(one, category=None) for one in others.products))
    return Domain(PRODUCTS, products), support, others


def _domain_of(name: str, examples: Iterable[tuple[Any, ...]]) -> Domain:
    """Return examples as a domain.

    Raises:
        ValueError: an example is none of a domain's.
    """
    parts: dict[type, list[Any]] = {Product: [], Review: [], Question: []}
    for one in (one for several in examples for one in several):
        if type(one) not in parts:
            raise ValueError(
                f"the guide adapted to a {type(one).__name__}; only products, reviews and "
                "questions can be saved"
            )
        # The product that an example is about is read by nothing, and may not be kept.
        parts[type(one)].append(one if type(one) is Product else replace(one, product=None))
    return Domain(name, *map(tuple, parts.values()))


def _by_type(domain: Domain) -> dict[type, tuple[Any, ...]]:
    return {Product: domain.products, Review: domain.reviews, Question: domain.questions}


def check_replaceable(folder: Path) -> None:
    """Check that nothing but a saved guide is lost.

    Raises:
        CheckpointError: there is something else.
    """
    known = (FILE, ARRAYS, TOKENIZER, PRODUCTS, SUPPORT, UNLABELLED, REVIEWS, ENCODER)
    try:
        other = would_be_lost(folder, known, FILE)
    except FileFault as error:
        raise CheckpointError(f"{folder}: {error}; move it away, or give another folder") from error
    if other is not None:
        raise CheckpointError(
            f"{folder / other}: this is no part of a saved guide and would be lost if one were "
            "written here; move it away, or give another folder"
        )


def _seal(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _digest(found: Mapping[str, Any]) -> str:
    """Return a hash of a description, whatever its white space."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
