"""What the fields of a config may hold, as data that stand beside the config."""

import math
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeVar

LARGEST = 2**31 - 1
"""What a step, a seed and a size can be at most."""


class Range(NamedTuple):
    """What a field may hold.

    Attributes:
        words: what to give, such as "a whole number from 1 on".
        holds: value -> whether the field may have it.
        required: whether every config has to have the field.
        late: whether what reads the field refuses it too, in words that say more of it, though
            after a work folder was made: a command is checked here, a call of `resolve` there.
    """

    words: str
    holds: Callable[[Any], bool]
    required: bool = True
    late: bool = False


class Relation(NamedTuple):
    """What two fields have to be to one another.

    Attributes:
        field: a pattern of dotted names.
        other: a dotted name; one that begins with a dot is beside the field.
        words: what to give for `field`, before the name and the value of `other`.
        holds: (value, value of the other) -> whether they fit.
        late: as of `Range`.
    """

    field: str
    other: str
    words: str
    holds: Callable[[Any, Any], bool]
    late: bool = False


Rule = TypeVar("Rule", Range, Relation)


def integer(least: int, most: int = LARGEST) -> Range:
    """Return: whole numbers from `least` to `most`."""
    words = f"from {least} on" if most == LARGEST else f"from {least} to {most}"
    return Range(
        f"a whole number {words}",
        lambda value: _is_number(value, int) and least <= value <= most,
    )


def positive() -> Range:
    """Return: finite numbers above 0."""
    return Range(
        "a positive number", lambda value: _is_number(value) and 0 < value and math.isfinite(value)
    )


def at_least_0() -> Range:
    """Return: finite numbers that are not negative."""
    return Range(
        "a number from 0 on",
        lambda value: _is_number(value) and 0 <= value and math.isfinite(value),
    )


def share(*, zero: bool = True, one: bool = True) -> Range:
    """Return: numbers from 0 to 1, with or without either."""
    left_out = " or ".join([*([] if zero else ["0"]), *([] if one else ["1"])])

    def holds(value: Any) -> bool:
        return _is_number(value) and 0 <= value <= 1 and (zero or value > 0) and (one or value < 1)

    return Range("a number from 0 to 1" + (f", not {left_out}" if left_out else ""), holds)


def one_of(*names: str) -> Range:
    """Return: one of some names."""
    shown = ", ".join(name or '""' for name in names)
    return late(Range(f"one of {shown}", lambda value: isinstance(value, str) and value in names))


def text() -> Range:
    """Return: any text."""
    return Range("a text", lambda value: isinstance(value, str))


def switch() -> Range:
    """Return: True or False."""
    return Range("True or False", lambda value: isinstance(value, bool))


def several(each: Range, least: int = 1, most: int = LARGEST) -> Range:
    """Return: a tuple of so many values, each of which is in a range."""
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
    """Return a range of a field that a config may do without."""
    return one._replace(required=False)


def late(one: Rule) -> Rule:
    """Return a range or a relation that what reads the field holds to as well."""
    return one._replace(late=True)


def multiple(field: str, other: str) -> Relation:
    """Return: `field` is a multiple of `other`, where that is not 0."""
    return Relation(field, other, "a multiple of", lambda value, of: not of or value % of == 0)


def at_most(field: str, other: str) -> Relation:
    """Return: `field`, or what it holds the most of, is no more than `other`."""
    return Relation(
        field,
        other,
        "no more than",
        lambda value, most: (max(value) if isinstance(value, tuple | list) else value) <= most,
    )


def lacking(flat: Mapping[str, Any], ranges: Mapping[str, Range]) -> list[str]:
    """Return the fields that a config has to have, and has not.

    Args:
        flat: the config's values by dotted name.
        ranges: by pattern of dotted names; a pattern is no field.
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
    """Yield what is wrong with the values of a config: "FIELD=VALUE: give ..." each.

    Args:
        flat: the config's values by dotted name.
        ranges: by pattern of dotted names. The first one that matches a field is its.
        relations: between fields; they are looked at where each by itself is right.
        late: whether to look at late fields too; see `Range`.
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
    """Return the range of a field by its dotted name, None where nothing is said of it."""
    if name in ranges:
        return ranges[name]
    return next((one for field, one in ranges.items() if fnmatchcase(name, field)), None)


def _is_number(value: Any, kind: type = object) -> bool:
    """Return whether a value is a number, a whole one where `kind` is int; True is none."""
    known = int if kind is int else int | float
    return isinstance(value, known) and not isinstance(value, bool)
