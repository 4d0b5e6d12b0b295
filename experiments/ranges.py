"""Valid values of config fields, declared as data next to the config."""

import math
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeVar

LARGEST = 2**31 - 1
"""Largest valid step, seed or size."""


class Range(NamedTuple):
    """The valid values of a field.

    Attributes:
        words: description for error messages, such as "a whole number of at least 1".
        holds: value -> whether it is valid.
        required: whether every config must have the field.
        late: whether the code that reads the field refuses bad values too. Its message says more,
            but comes after a work folder was created. A command checks the field here; a call of
            `resolve` leaves it to that code.
    """

    words: str
    holds: Callable[[Any], bool]
    required: bool = True
    late: bool = False


class Relation(NamedTuple):
    """A relation that must hold between two fields.

    Attributes:
        field: a pattern of dotted names.
        other: a dotted name; one that begins with a dot is in the same section as the field.
        words: description of valid values, followed in messages by the name and value of `other`.
        holds: (value, value of the other) -> whether they fit.
        late: as in `Range`.
    """

    field: str
    other: str
    words: str
    holds: Callable[[Any, Any], bool]
    late: bool = False


Rule = TypeVar("Rule", Range, Relation)


def integer(least: int, most: int = LARGEST) -> Range:
    """Return a range of whole numbers from `least` to `most`."""
    words = f"of at least {least}" if most == LARGEST else f"from {least} to {most}"
    return Range(
        f"a whole number {words}",
        lambda value: _is_number(value, int) and least <= value <= most,
    )


def positive() -> Range:
    """Return a range of finite numbers above 0."""
    return Range(
        "a positive number", lambda value: _is_number(value) and 0 < value and math.isfinite(value)
    )


def at_least_0() -> Range:
    """Return a range of finite non-negative numbers."""
    return Range(
        "a number of at least 0",
        lambda value: _is_number(value) and 0 <= value and math.isfinite(value),
    )


def share(*, zero: bool = True, one: bool = True) -> Range:
    """Return a range of numbers from 0 to 1, with or without either end."""
    left_out = " or ".join([*([] if zero else ["0"]), *([] if one else ["1"])])

    def holds(value: Any) -> bool:
        return _is_number(value) and 0 <= value <= 1 and (zero or value > 0) and (one or value < 1)

    return Range("a number from 0 to 1" + (f", not {left_out}" if left_out else ""), holds)


def one_of(*names: str) -> Range:
    """Return a range whose values are the given names."""
    shown = ", ".join(name or '""' for name in names)
    return late(Range(f"one of {shown}", lambda value: isinstance(value, str) and value in names))


def text() -> Range:
    """Return a range of all texts."""
    return Range("a text", lambda value: isinstance(value, str))


def switch() -> Range:
    """Return a range of True and False."""
    return Range("True or False", lambda value: isinstance(value, bool))


def several(each: Range, least: int = 1, most: int = LARGEST) -> Range:
    """Return a range of tuples of `least` to `most` values, each in the range `each`."""
    many = f"{least} to {most}" if most < LARGEST else ("any number of", "one or more")[least > 0]
    return Range(
        f"a tuple of {many} values, each {each.words}",
        lambda values: (
            isinstance(values, tuple | list)
            and least <= len(values) <= most
            and all(map(each.holds, values))
        ),
        late=each.late,
    )


def optional(one: Range) -> Range:
    """Return the same range for a field that a config may omit."""
    return one._replace(required=False)


def late(one: Rule) -> Rule:
    """Return a range or relation that the code reading the field also enforces."""
    return one._replace(late=True)


def multiple(field: str, other: str) -> Relation:
    """Return the relation that `field` is a multiple of `other`, unless that is 0."""
    return Relation(field, other, "a multiple of", lambda value, of: not of or value % of == 0)


def at_most(field: str, other: str) -> Relation:
    """Return the relation that `field`, or its largest element, is at most `other`."""
    return Relation(
        field,
        other,
        "no more than",
        lambda value, most: (max(value) if isinstance(value, tuple | list) else value) <= most,
    )


def lacking(flat: Mapping[str, Any], ranges: Mapping[str, Range]) -> list[str]:
    """Return the required fields that a config lacks.

    Args:
        flat: the config's values, keyed by dotted name.
        ranges: ranges keyed by pattern of dotted names; patterns with wildcards are not fields.
    """
    return [
        name
        for name, one in ranges.items()
        if one.required and "*" not in name and name not in flat
    ]


def faults(
    flat: Mapping[str, Any],
    ranges: Mapping[str, Range],
    relations: tuple[Relation, ...] = (),
    late: bool = True,
) -> Iterator[str]:
    """Yield an error message "FIELD=VALUE: give ..." for each invalid value of a config.

    Args:
        flat: the config's values, keyed by dotted name.
        ranges: ranges keyed by pattern of dotted names; the first match applies to a field.
        relations: relations between fields, checked only if all fields are valid.
        late: whether to check late fields too; see `Range`.
    """
    wrong = False
    for name, value in flat.items():
        one = range_of(name, ranges)
        if one is None or isinstance(value, Mapping) or (one.late and not late):
            continue  # an empty section is a field of its own here
        if not one.holds(value):
            wrong = True
            yield f"{name}={value!r}: give {one.words}"
    for one in () if wrong else relations:
        for name in [field for field in flat if fnmatchcase(field, one.field)]:
            other = name.rpartition(".")[0] + one.other if one.other[0] == "." else one.other
            if other not in flat or (one.late and not late) or one.holds(flat[name], flat[other]):
                continue
            yield f"{name}={flat[name]!r}: give {one.words} config.{other}, {flat[other]!r}"


def range_of(name: str, ranges: Mapping[str, Range]) -> Range | None:
    """Return the range of a field by its dotted name; None if it has none."""
    if name in ranges:
        return ranges[name]
    return next((one for field, one in ranges.items() if fnmatchcase(name, field)), None)


def _is_number(value: Any, kind: type = object) -> bool:
    """Return whether a value is a number, of type `kind`; True and False are not numbers."""
    known = int if kind is int else int | float
    return isinstance(value, known) and not isinstance(value, bool)


TUNED: Mapping[str, Range] = {
    "layers": integer(0),
    "epochs": at_least_0(),
    "batch": integer(1),
    "learning_rate": positive(),
    "head_learning_rate": positive(),
    "weight_decay": at_least_0(),
    "dropout": share(),
    "log_every": integer(1),
    "checkpoint_every": integer(1),
}
"""Valid values of the section that says how the last layers of a pretrained encoder train."""
