"""RecBole's atomic files: `.inter`, `.item` and `.user`, whose header gives each field a type.

Users are read from the interactions only. Unless a mapping says otherwise, a product's id is
`item_id`, its title the first text of many words, and its category the first of `class`,
`categories`, `category` and `genre`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from metaguide.data.importers.records import Table, read_csv
from metaguide.data.importers.source import Reject, within
from metaguide.data.importers.tables import Options, Reading, joined, mapped
from metaguide.data.rows import CatalogueError

_CATEGORIES = ("class", "categories", "category", "genre")
_INTERACTIONS = {"user": "user_id", "product": "item_id", "time": "timestamp"}


def recbole(files: Sequence[Path], options: Options) -> Reading:
    """Read atomic files.

    Args:
        files: a `.item` and a `.inter` file, or a folder that holds them.
        options: the mapping of the products' fields, and the encoding.

    Raises:
        CatalogueError: no `.item` file is given, or nothing in it is a title.
    """
    named = within(files)
    items = [path for path in named if path.suffix == ".item"]
    if not items:
        raise CatalogueError(
            f"{files[0]}: no .item file, which holds the products; give it beside the .inter file."
        )
    readings = [_items(path, options) for path in items]
    others = [path for path in named if path.suffix == ".inter"]
    readings += [_interactions(path, options) for path in others]
    return joined(readings)._replace(unread=readings[0].unread)


def _table(path: Path, options: Options) -> tuple[Table, dict[str, str]]:
    """Return a file as a table, and the types of its columns."""
    table = read_csv(path, delimiter="\t", is_quoted=False, encoding=options.encoding)
    types = {name: kind for name, _, kind in (one.rpartition(":") for one in table.columns)}
    if "" in types:
        raise CatalogueError(
            f"{path}:1: {table.columns[0]!r} has no type; the header of an atomic file is like "
            "item_id:token, title:token_seq."
        )
    columns = tuple(types)

    def records() -> Iterator:
        for one in table.records:
            if isinstance(one, Reject):
                yield one
            else:
                place, values, line = one
                yield place, dict(zip(columns, values.values(), strict=True)), line

    return Table(columns, records()), types


def _items(path: Path, options: Options) -> Reading:
    table, types = _table(path, options)
    mapping = dict(options.mapping)
    if not mapping:
        titles = [name for name, kind in types.items() if kind == "token_seq"]
        title = next((one for one in titles if "title" in one or "name" in one), None)
        category = next((one for one in _CATEGORIES if one in types), None)
        titles = [one for one in titles if one != category]
        if not titles:
            raise CatalogueError(
                f"{path}:1: no field of many words that could be a title; map one to title."
            )
        mapping = {"id": "item_id", "title": title or titles[0]}
        if category is not None:
            mapping["category"] = category
    return mapped(path, table, replace(options, mapping=mapping))


def _interactions(path: Path, options: Options) -> Reading:
    table, _ = _table(path, options)
    return mapped(path, table, replace(options, mapping=_INTERACTIONS))
