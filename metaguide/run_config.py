"""The self-description of a run folder; all reading and writing of it happens here."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from metaguide.files import MIB, FileFault, read_json, write_json
from metaguide.methods import IN_GUIDE, META_TRAINED, adaptation_of
from metaguide.tasks import TASKS
from metaguide.training.checkpoint import About, CheckpointError

FILE, TOKENIZER = "run_config.json", "tokenizer.json"
"""Files of a run folder: its self-description, and the tokenizer of its guide."""

VERSION = 6
"""Version of the file; it increases when a field is added or changes its meaning.

Versions 4 and 5 number n-grams anew: a guide of an earlier version that reads them must be trained
anew.
"""

ADDED: Mapping[int, Mapping[str, Any]] = {
    2: {
        "buckets": 0,
        **{"encoder": "", "encoder_prefix": "", "encoder_pooling": "mean", "encoder_length": 0},
        **{"encoder_width": 0, "encoder_fingerprint": ""},
    },
    3: {"encoder_train": "frozen", "encoder_rank": 0, "encoder_layers": 0},
    6: {"known_classes": ()},
}
"""Values, in files of earlier versions, of the fields that a version added."""

MOST_BYTES = 16 * MIB
"""Limit on the bytes of a file that are read."""

STAGES = ("", "pretrain", "multitask", "metatrain")
"""Training stages; "" is a complete guide, whose stages have their own folders."""

TRAINED = ("frozen", "lora", "last", "all")
"""What may train of a pretrained encoder; "frozen" is nothing, and its vectors are read."""

LARGEST_RATE, MOST_STEPS = 1e6, 10_000
WIDEST, MOST_LAYERS, MOST_TOKENS, MOST_IDS = 2**14, 2**8, 2**16, 2**24
"""Bounds: values beyond them mean a damaged file, and would fill the memory or never end."""

EARLIER_CONFIG, EARLIER_STAGE, EARLIER_SERVING = "config.json", "stage.json", "serving.json"
"""The files that held the same content before `FILE` was introduced."""


@dataclass(frozen=True)
class Served:
    """Which method serves a task, and how.

    Attributes:
        folder: folder, inside the run folder, of the stage whose parameters it adapts.
        method: a name in `metaguide.methods.METHODS`.
        learning_rate: learning rate of its gradient descent; for other methods the penalty, or the
            factor of a learned optimizer's updates.
        steps: number of its gradient steps.
    """

    folder: str
    method: str
    learning_rate: float
    steps: int


@dataclass(frozen=True)
class RunConfig:
    """The self-description of a run folder: all that loading its guide needs but the parameters.

    Attributes:
        width: width of the encoder.
        layers: number of layers of the encoder.
        heads: number of attention heads, a divisor of the width.
        dropout: dropout rate in pre-training.
        channels: channels of the convolutions on pictures.
        image: whether pictures are read.
        way: number of slots of the classification head.
        text_tokens: tokens kept of a product or a review.
        pair_tokens: tokens kept of a question with its passage.
        name_tokens: tokens kept of the name of a class.
        max_answer_tokens: longest answer, in tokens.
        buckets: number of buckets of hashed n-grams; 0 if they are not read.
        encoder: folder of the pretrained encoder, as the run was given it; "" if there is none.
        encoder_prefix: text put before every text for it.
        encoder_pooling: how its token states become a vector, "mean" or "cls".
        encoder_length: most tokens it reads of a text.
        encoder_width: width of its vectors; 0 if there is none.
        encoder_fingerprint: hash of its files.
        encoder_train: what trains of it: "frozen" for nothing, where its vectors are read; in a
            guide whose encoder of texts it is, "lora", "last" or "all" of its parameters.
        encoder_rank: rank of LoRA's factors; 0 if there are none.
        encoder_layers: number of its last layers that train with "last".
        vocabulary: number of the tokenizer's ids; None in older folders, which did not store it.
        known_classes: names of the product categories that training saw.
        serving: the method that serves each task, keyed by task.
        stage: one of `STAGES`.
        learner: meta-training's learner, a name in `metaguide.methods.META_TRAINED`; "" elsewhere.
        seed: seed of the training; None in a folder that does not state it.
        version: version of the file.

    Raises:
        FieldError: a field is not as above, or beyond the bounds.
    """

    width: int
    layers: int
    heads: int
    dropout: float
    channels: tuple[int, ...]
    image: bool
    way: int
    text_tokens: int
    pair_tokens: int
    name_tokens: int
    max_answer_tokens: int
    buckets: int = 0
    encoder: str = ""
    encoder_prefix: str = ""
    encoder_pooling: str = "mean"
    encoder_length: int = 0
    encoder_width: int = 0
    encoder_fingerprint: str = ""
    encoder_train: str = "frozen"
    encoder_rank: int = 0
    encoder_layers: int = 0
    vocabulary: int | None = None
    known_classes: tuple[str, ...] = ()
    serving: Mapping[str, Served] = field(default_factory=dict)
    stage: str = ""
    learner: str = ""
    seed: int | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        """Check every field."""
        _check_fields({**vars(self), "serving": {k: vars(one) for k, one in self.serving.items()}})

    @property
    def about(self) -> About:
        """Return the description in a stage's checkpoints; {} for a complete guide."""
        if not self.stage:
            return {}
        seed = {} if self.seed is None else {"seed": self.seed}
        return {"stage": self.stage, "learner": self.learner, **seed}


class FieldError(ValueError):
    """A field of a run config is missing or has an invalid value.

    Attributes:
        field: its dotted name.
        fault: what is wrong with it, and the fix.
    """

    def __init__(self, name: str, fault: str):
        """Describe what is wrong with the field `name`."""
        super().__init__(f"{name} {fault}")
        self.field, self.fault = name, fault


class Range(NamedTuple):
    """The values that a field may hold.

    Attributes:
        words: for "give ...".
        holds: whether a value is among them.
    """

    words: str
    holds: Callable[[Any], bool]


def _whole(least: int, most: int) -> Range:
    def holds(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    return Range(f"a whole number from {least} to {most}", holds)


def _number(least: float, most: float) -> Range:
    def holds(value: Any) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # NaN is not within the bounds either.
        return is_number and least <= value <= most

    return Range(f"a number from {least:g} to {most:g}", holds)


def _among(names: tuple[str, ...]) -> Range:
    words = f"one of {', '.join(repr(name) for name in names)}"
    return Range(words, lambda value: isinstance(value, str) and value in names)


def _optional(one: Range) -> Range:
    return Range(f"{one.words}, or nothing", lambda value: value is None or one.holds(value))


def _is_inside(value: Any) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= 200 or "\0" in value:
        return False
    path = PurePosixPath(value)
    return not path.is_absolute() and ".." not in path.parts


_TOKENS = _whole(1, MOST_TOKENS)
_TEXT = Range("a text", lambda value: isinstance(value, str) and len(value) <= 4096)

RANGES: Mapping[str, Range] = {
    "width": _whole(1, WIDEST),
    "layers": _whole(0, MOST_LAYERS),
    "heads": _whole(1, WIDEST),
    "dropout": _number(0.0, math.nextafter(1.0, 0.0)),
    "channels": Range(
        f"one to five whole numbers from 1 to {WIDEST}",
        lambda value: (
            isinstance(value, tuple)
            and 0 < len(value) <= 5  # 32 pixels halve five times
            and all(_whole(1, WIDEST).holds(one) for one in value)
        ),
    ),
    "image": Range("true or false", lambda value: isinstance(value, bool)),
    "way": _whole(1, WIDEST),
    "text_tokens": _TOKENS,
    "pair_tokens": _TOKENS,
    "name_tokens": _TOKENS,
    "max_answer_tokens": _TOKENS,
    "buckets": Range(
        f"0, or a whole number from 4 to {MOST_IDS}",
        lambda value: value == 0 and _whole(0, 0).holds(value) or _whole(4, MOST_IDS).holds(value),
    ),
    "encoder": _TEXT,
    "encoder_prefix": _TEXT,
    "encoder_pooling": _among(("mean", "cls")),
    "encoder_length": _whole(0, MOST_TOKENS),
    "encoder_width": _whole(0, WIDEST),
    "encoder_fingerprint": _TEXT,
    "encoder_train": _among(TRAINED),
    "encoder_rank": _whole(0, WIDEST),
    "encoder_layers": _whole(0, MOST_LAYERS),
    "vocabulary": _optional(_whole(1, MOST_IDS)),
    "known_classes": Range(
        "a list of texts",
        lambda value: isinstance(value, tuple) and all(isinstance(one, str) for one in value),
    ),
    "serving": Range("a table of tasks", lambda value: isinstance(value, Mapping)),
    "stage": _among(STAGES),
    "learner": _among(("", *META_TRAINED)),
    "seed": _optional(_whole(0, 2**63)),
    "version": _whole(VERSION, VERSION),
}
"""Valid values of the fields of a `RunConfig`."""

SERVING_RANGES: Mapping[str, Range] = {
    "folder": Range("the path of a folder inside the run", _is_inside),
    "method": _among(IN_GUIDE),
    "learning_rate": _number(0.0, LARGEST_RATE),
    "steps": _whole(0, MOST_STEPS),
}
"""Valid values of the fields of a `Served`."""


def _check_fields(found: Mapping[str, Any]) -> None:
    """Check the fields of a `RunConfig`, with tables in place of each `Served`.

    Raises:
        FieldError: a field is missing, surplus or out of its range.
    """
    check_table("", found, RANGES)
    width, heads = found["width"], found["heads"]
    if width % heads:
        raise FieldError("heads", f"is {heads}; give a divisor of the width, {width}")
    if not (found["layers"] or found["buckets"] or found["encoder_width"]):
        raise FieldError("layers", "is 0, without n-grams or an encoder; give 1 or more")
    trains = found["encoder_train"]
    if trains != "frozen" and not found["encoder_width"]:
        raise FieldError("encoder_train", f"is {trains!r}, of no encoder; give 'frozen'")
    if trains == "lora" and not found["encoder_rank"]:
        raise FieldError("encoder_rank", "is 0; give the rank of the factors, 1 or more")
    for task, one in found["serving"].items():
        if task not in TASKS:
            raise FieldError("serving", f"names the task {task!r:.40}; name {', '.join(TASKS)}")
        _check(f"serving.{task}", one, Range("a table", lambda value: isinstance(value, Mapping)))
        check_table(f"serving.{task}.", one, SERVING_RANGES)


def check_table(prefix: str, found: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    """Check that a table holds these fields, and no others.

    Args:
        prefix: what stands before the names of its fields in messages.
        found: the table.
        ranges: valid values, keyed by field.

    Raises:
        FieldError: a field is missing, surplus or out of its range.
    """
    for name in found:
        if name not in ranges:
            raise FieldError(f"{prefix}{name:.40}", "is no field of this version; take it out")
    for name, range_ in ranges.items():
        if name not in found:
            raise FieldError(f"{prefix}{name}", "is missing; add it")
        _check(f"{prefix}{name}", found[name], range_)


def _check(name: str, value: Any, range_: Range) -> None:
    if not range_.holds(value):
        raise FieldError(name, f"is {value!r:.60}; give {range_.words}")


def stage_serving(learner: str, learning_rate: float, steps: int) -> dict[str, Served]:
    """Return what serves each task when a single training stage is loaded as a guide.

    The stage's learner serves the tasks that it can adapt to. Other tasks use fine-tuning, of the
    head alone for recommendation.

    Args:
        learner: meta-training's learner; "" for another stage.
        learning_rate: learning rate of gradient descent. A learned optimizer makes its own steps.
        steps: number of gradient steps.
    """
    adaptation = adaptation_of(learner or "fine-tuning")
    examples = (
        learner
        if learner and (adaptation.adapts == "all" or adaptation.is_learned)
        else "fine-tuning"
    )
    users = learner if adaptation.adapts == "head" and adaptation.is_learned else "head-only"
    methods = {task: users if task == "recommendation" else examples for task in TASKS}
    return {
        task: Served(".", method, 1.0 if adaptation_of(method).is_learned else learning_rate, steps)
        for task, method in methods.items()
    }


def write(config: RunConfig, folder: Path) -> None:
    """Write a run folder's self-description atomically.

    Args:
        config: the description.
        folder: the run folder; created if missing.
    """
    write_json(folder / FILE, as_fields(config))


def as_fields(config: RunConfig) -> dict[str, Any]:
    """Return a description as plain JSON, the version first."""
    return {"version": config.version, **asdict(config)}


def read(folder: Path) -> RunConfig:
    """Read a run folder's self-description.

    Raises:
        CheckpointError: there is none, or a file is damaged; the message names file and field.
    """
    found = find(folder)
    if found is not None:
        return found
    absent = EARLIER_STAGE if _json(folder / EARLIER_CONFIG) is not None else FILE
    raise CheckpointError(
        f"{folder / absent}: no such file; give the folder of a trained guide or of a stage"
    )


def find(folder: Path) -> RunConfig | None:
    """Read a folder's self-description, or return None if there is none.

    Raises:
        CheckpointError: a file is damaged; the message names the file and the field.
    """
    path = folder / FILE
    found = _json(path)
    return _read_earlier(folder) if found is None else from_fields(found, path)


def from_fields(
    found: Mapping[str, Any], where: Path, mend: str = "train the run anew"
) -> RunConfig:
    """Return the description that `as_fields` made plain, in this version or an earlier one.

    Args:
        found: the JSON object.
        where: the file that holds it, for messages.
        mend: what else to do about an invalid field, for messages.

    Raises:
        CheckpointError: a field is invalid, or the version is newer.
    """
    version = found.get("version")
    if isinstance(version, int) and version > VERSION:
        raise CheckpointError(
            f"{where}: version is {version}, and this metaguide reads {VERSION}; update metaguide"
        )
    if isinstance(version, int) and not isinstance(version, bool) and version >= 1:
        if version < 5 and found.get("buckets"):
            raise CheckpointError(
                f"{where}: version is {version}, whose n-grams (buckets) had other numbers; train "
                "the guide anew"
            )
        found = {**_added_since(version), **found, "version": VERSION}
    try:
        return _built(found)
    except FieldError as error:
        raise CheckpointError(f"{where}: {error}, or {mend}") from error


def _added_since(version: int) -> dict[str, Any]:
    """Return the values, in a file of a version, of the fields that later versions added."""
    later = (added for number, added in ADDED.items() if number > version)
    return {name: value for added in later for name, value in added.items()}


def _built(found: Mapping[str, Any]) -> RunConfig:
    """Build a config from JSON.

    Raises:
        FieldError: a field is missing, surplus or out of its range.
    """
    lists = {name: tuple(one) for name, one in found.items() if isinstance(one, list)}
    found = {**found, **lists}
    _check_fields(found)
    serving = {
        task: Served(**{**one, "learning_rate": float(one["learning_rate"])})
        for task, one in found["serving"].items()
    }
    return RunConfig(**{**found, "dropout": float(found["dropout"]), "serving": serving})


_EARLIER: Mapping[str, str] = {
    "width": "model.width",
    "layers": "model.layers",
    "heads": "model.heads",
    "dropout": "model.dropout",
    "channels": "model.channels",
    "image": "model.image",
    "way": "model.way",
    "text_tokens": "text.text",
    "pair_tokens": "text.pair",
    "name_tokens": "text.name",
    "max_answer_tokens": "episodes.longest",
    "serving.learning_rate": "metatrain.inner_rate",
    "serving.steps": "adapt.steps",
}
"""The fields' places in `EARLIER_CONFIG`."""


def _read_earlier(folder: Path) -> RunConfig | None:
    """Read a run folder older than `FILE`, or return None if it is not one.

    It holds the config of an experiment and either a file that describes the stage, or one that
    says which method serves which task.
    """
    config, stage, serving = (
        _json(folder / name) for name in (EARLIER_CONFIG, EARLIER_STAGE, EARLIER_SERVING)
    )
    if config is None or (stage is None and serving is None):
        return None
    said = stage or {}
    found: dict[str, Any] = {name: said.get(name) or "" for name in ("stage", "learner")}
    found |= {"seed": said.get("seed"), "vocabulary": None}
    found |= {**_added_since(1), "version": VERSION}
    try:
        found |= {name: _at(config, name) for name in _EARLIER if "." not in name}
        if serving is None:
            _check("learner", found["learner"], RANGES["learner"])
            rate, steps = (_at(config, f"serving.{name}") for name in ("learning_rate", "steps"))
            _check("serving.learning_rate", rate, SERVING_RANGES["learning_rate"])
            _check("serving.steps", steps, SERVING_RANGES["steps"])
            made = stage_serving(found["learner"], float(rate), steps)
            found["serving"] = {task: asdict(one) for task, one in made.items()}
        else:
            found["serving"] = {task: _renamed(one) for task, one in serving.items()}
        return _built(found)
    except FieldError as error:
        file, name = _earlier_place(error.field, of_stage=serving is None)
        raise CheckpointError(
            f"{folder / file}: {name} {error.fault}, or train the run anew"
        ) from error


def _at(config: Mapping[str, Any], name: str) -> Any:
    found: Any = config
    for part in _EARLIER[name].split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise FieldError(name, "is missing; add it")
        found = found[part]
    return found


def _renamed(one: Any) -> Any:
    names = {"arm": "method", "rate": "learning_rate"}
    is_table = isinstance(one, Mapping)
    return {names.get(name, name): value for name, value in one.items()} if is_table else one


def _earlier_place(name: str, of_stage: bool) -> tuple[str, str]:
    """Return the earlier file that held a field, and the field's name there."""
    if name in _EARLIER:
        return EARLIER_CONFIG, _EARLIER[name]
    first, *rest = name.split(".")
    if first != "serving":
        return EARLIER_STAGE, name
    if of_stage:
        return EARLIER_CONFIG, _EARLIER[f"serving.{rest[-1]}"]
    names = {"method": "arm", "learning_rate": "rate"}
    return EARLIER_SERVING, ": ".join(names.get(part, part) for part in rest) or "it"


def _json(path: Path) -> dict[str, Any] | None:
    """Read a JSON file, or return None if there is none."""
    try:
        return read_json(path, MOST_BYTES)
    except FileNotFoundError:
        return None
    except FileFault as error:
        raise CheckpointError(f"{path}: {error}; train the run anew") from error
