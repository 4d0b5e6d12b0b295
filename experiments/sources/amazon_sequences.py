"""Purchase sequences of Amazon shops: what each user took, in the order of time.

The zip has two files for each domain. `rec_datasets/DOMAIN/user_sequence.txt` has a line for each
user, the user and the items. `rec_datasets/DOMAIN/item_generative_indexing_….txt` has a line for
each item, the item and keyword pieces of its text, split by `|`; `▁` starts a word. The pieces
stand in the order of a tree of clusters of item texts, so that items whose first pieces agree are
alike.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from ml_collections.config_dict import FrozenConfigDict

from experiments.sources.parts import Parts, named, real_data
from metaguide.data.catalogue import CatalogueError, Domain, Interaction, Product
from metaguide.files import MIB, FileFault, read_regular, zip_members

FILE = "amazon_sequences.zip"
"""The zip that holds the folder `rec_datasets`."""

MOST = 256 * MIB
"""The most bytes of the file, packed or not: 20 times the original."""

LEAST = 3
"""Items of a user at least: one to be shown, one for validation and one for the test."""

_SEQUENCES = re.compile(r"(?:.*/)?(?P<domain>[^/]+)/user_sequence\.txt")
_ITEMS = re.compile(r"(?:.*/)?(?P<domain>[^/]+)/item_generative_indexing_[^/]*\.txt")
_AGAIN = "download the file again"


class Shop(NamedTuple):
    """The catalogue of one domain, and what its users took.

    Attributes:
        name: of the domain.
        items: their ids, sorted.
        pieces: keyword pieces of each item.
        users: their ids.
        sequences: numbers of the items of each user, in the order of time, each once.
    """

    name: str
    items: tuple[str, ...]
    pieces: tuple[tuple[str, ...], ...]
    users: tuple[str, ...]
    sequences: tuple[Int[np.ndarray, " items"], ...]

    def without(self, users: frozenset[str]) -> "Shop":
        """Return the shop without some users."""
        kept = [row for row, user in enumerate(self.users) if user not in users]
        return self._replace(
            users=tuple(self.users[row] for row in kept),
            sequences=tuple(self.sequences[row] for row in kept),
        )


def read_amazon_sequences(path: Path) -> tuple[Shop, ...]:
    """Read the shops, sorted by name.

    Args:
        path: the zip.

    Raises:
        CatalogueError: the file is missing or breaks this format; names file and line.
    """
    try:
        members = zip_members(read_regular(path, MOST), MOST)
        found: dict[str, dict[str, tuple[str, bytes]]] = {}
        for name, content in members.items():
            for part, pattern in (("users", _SEQUENCES), ("items", _ITEMS)):
                if match := pattern.fullmatch(name):
                    domain = found.setdefault(match["domain"], {})
                    if part in domain:
                        raise CatalogueError(
                            f"{path}/{name}: {domain[part][0]} is of the same domain; drop one."
                        )
                    domain[part] = name, content()
    except FileNotFoundError as error:
        raise CatalogueError(
            f"{path}: no such file; set METAGUIDE_DATA_DIR to the folder that holds {path.name}."
        ) from error
    except FileFault as error:
        raise CatalogueError(f"{path}: cannot be read ({error}); {_AGAIN}.") from error
    if not found:
        raise CatalogueError(f"{path}: no DOMAIN/user_sequence.txt in this file; {_AGAIN}.")
    shops = []
    for domain, parts in sorted(found.items()):
        for part, file in (("users", "user_sequence"), ("items", "item_generative_indexing_…")):
            if part not in parts:
                raise CatalogueError(f"{path}: {domain} has no {file}.txt; {_AGAIN}.")
        pieces = _pieces(*_named(path, parts["items"]))
        items = tuple(sorted(pieces))
        number = {item: row for row, item in enumerate(items)}
        sequences = _sequences(*_named(path, parts["users"]), number)
        of_items = tuple(pieces[item] for item in items)
        shops.append(Shop(domain, items, of_items, tuple(sequences), tuple(sequences.values())))
    return tuple(shops)


def read(config: FrozenConfigDict, folder: Path) -> Parts:
    """Read the shops for a run; the errors are those of `named` and `read_amazon_sequences`.

    Args:
        config: its `data` is read.
        folder: unused, since nothing is generated.
    """
    return named(config, read_domains())


def read_domains() -> dict[str, Domain]:
    """Read the shops as domains; the errors are those of `read_amazon_sequences`.

    Keyword pieces are the titles of products, and the place in a sequence is the time.
    """
    return {shop.name: _domain(shop) for shop in read_amazon_sequences(real_data(FILE))}


def _domain(shop: Shop) -> Domain:
    titles = ("".join(pieces).replace("▁", " ").strip() for pieces in shop.pieces)
    return Domain(
        shop.name,
        products=tuple(Product(*one) for one in zip(shop.items, titles, strict=True)),
        interactions=tuple(
            Interaction(user, shop.items[item], float(time))
            for user, sequence in zip(shop.users, shop.sequences, strict=True)
            for time, item in enumerate(sequence)
        ),
    )


def _named(path: Path, part: tuple[str, bytes]) -> tuple[str, bytes]:
    return f"{path}/{part[0]}", part[1]


def _lines(file: str, content: bytes) -> Iterator[tuple[str, str]]:
    """Yield (file:line, text) of each line that is not blank."""
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            raise CatalogueError(f"{file}:{number}: not UTF-8; {_AGAIN}.") from error
        if text:
            yield f"{file}:{number}", text


def _pieces(file: str, content: bytes) -> dict[str, tuple[str, ...]]:
    """Return the keyword pieces of each item."""
    found: dict[str, tuple[str, ...]] = {}
    for where, text in _lines(file, content):
        item, _, rest = text.partition(" ")
        pieces = tuple(piece for piece in rest.strip().split("|") if piece)
        if not pieces:
            raise CatalogueError(f"{where}: item {item:.80} has no pieces; write ITEM |a|b|c.")
        if item in found:
            raise CatalogueError(f"{where}: item {item:.80} stands here again; drop the line.")
        found[item] = pieces
    if not found:
        raise CatalogueError(f"{file}: no item in this file; {_AGAIN}.")
    return found


def _sequences(file: str, content: bytes, number: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return the numbers of the items of each user."""
    found: dict[str, np.ndarray] = {}
    for where, text in _lines(file, content):
        user, *items = text.split()
        if len(items) < LEAST:
            raise CatalogueError(
                f"{where}: user {user:.80} has {len(items)} items, and {LEAST} are needed; drop "
                "the line."
            )
        if user in found:
            raise CatalogueError(f"{where}: user {user:.80} stands here again; drop the line.")
        if lost := next((item for item in items if item not in number), None):
            raise CatalogueError(
                f"{where}: item {lost:.80} has no line in the file of items; add it there."
            )
        if len(set(items)) < len(items):
            twice = next(item for item in items if items.count(item) > 1)
            raise CatalogueError(f"{where}: item {twice:.80} stands twice; keep it once.")
        found[user] = np.array([number[item] for item in items], np.int32)
    if not found:
        raise CatalogueError(f"{file}: no user in this file; {_AGAIN}.")
    return found
