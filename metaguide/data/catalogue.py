"""Catalogues on disk: what a shop knows about its products, one folder per domain.

A catalogue is a folder with one folder for each domain; the name of the folder is the name of the
domain. Hidden folders (names that start with a dot) are ignored.

    my_shop/
        phones/
            products.jsonl
            reviews.jsonl
            questions.jsonl
            interactions.jsonl
            images/p1.png
        books/
            reviews.jsonl

Any of the four files may be missing, and so may `images/`; a domain needs at least one product,
one review or one question. `rejects.jsonl`, which an import may leave beside them, is not read. A
file holds one JSON object per line (blank lines are skipped), in UTF-8. A field that is not
required may be left out or be null. Other fields are errors, except that a product's fields with a
text or a number, such as a price, become attributes.

A domain is read completely and held in memory: a million reviews of 50 words take .9 GiB. Split a
shop of many millions into several domains.

`products.jsonl`, one product per line:

    {"id": "p1", "title": "Aster 5 phone", "description": "Six inches.", "category": "phone",
     "attributes": {"colour": "red", "memory": "8 GB"}, "image": "images/p1.png"}

    id           text, required, not empty, unique in the file
    title        text, required
    description  text
    category     text, the class that product classification predicts
    attributes   object of texts
    image        path, relative to the domain's folder, of a picture that Pillow can read; it is
                 converted to RGB and resized to 32 by 32 pixels

`reviews.jsonl`, one review per line:

    {"id": "r1", "text": "Holds a day and a half.", "stars": 4, "product": "p1"}
    {"id": "r2", "text": "屏幕很差", "sentiment": "negative"}

    id           text, required, not empty, unique in the file
    text         text, required
    stars        number from 1 to 5         } one of the two, or neither if it is not known;
    sentiment    "positive" or "negative"   } above 3 stars is positive, below is negative
    product      id of a line in products.jsonl

`questions.jsonl`, one question about a text per line:

    {"id": "q1", "question": "How long does it hold?", "text": "Holds a day and a half.",
     "answer": [6, 22], "product": "p1"}

    id           text, required, not empty, unique in the file
    question     text, required
    text         text, required, in which the answer is searched
    answer       [start, end], characters of `text` counted from 0, `end` excluded; null or left
                 out if the text has no answer
    answers      instead of `answer`, a list of such spans if several are right: training uses the
                 first, and a prediction is scored against the best match
    product      id of a line in products.jsonl

`interactions.jsonl`, one purchase, click or rating per line, in any order:

    {"user": "u1", "product": "p1", "time": 1700000000}

    user         text, required, not empty
    product      id of a line in products.jsonl, required
    time         number, required, in any unit that gives the order, such as seconds
"""

import io
import json
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metaguide.data.rows import (
    INTERACTION,
    PARTS,
    PRODUCT,
    QUESTION,
    REVIEW,
    CatalogueError,
    checked_rows,
    read_rows,
    suggestion,
)
from metaguide.data.viewed import as_viewed
from metaguide.files import MIB, atomic_folder, is_left_by_system, read_regular

IMAGE_SIDE = 32
"""Side of every product picture, in pixels."""


@dataclass(frozen=True, slots=True)
class Product:
    """A product.

    Attributes:
        id: its id, unlike that of any other product of the domain.
        title: its name, as the shop shows it.
        description: what else the shop says of it.
        category: the category that it is in; None if that is unknown.
        attributes: what it is like, such as {"colour": "red"}.
        image: its picture, uint8 [32, 32, 3], RGB; None without one.
    """

    id: str
    title: str
    description: str = ""
    category: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    image: np.ndarray | None = None

    def __eq__(self, other: object) -> bool:
        """Compare all fields, pictures pixel by pixel."""
        if not isinstance(other, Product):
            return NotImplemented
        mine, others = (
            {**_values(p), "image": None if p.image is None else (p.image.shape, p.image.tobytes())}
            for p in (self, other)
        )
        return mine == others


MOST = 64 * MIB
"""The most bytes of a picture file."""


def as_picture(where: str, image: np.ndarray) -> np.ndarray:
    """Return a picture as the reader makes it: uint8 [32, 32, 3].

    Args:
        where: location of the picture, for messages.
        image: RGB, [height, width, 3], uint8 or floats in [0, 1].

    Raises:
        CatalogueError: `image` is not such an array.
    """
    image = np.asarray(image)
    real = image.dtype == np.uint8 or np.issubdtype(image.dtype, np.floating)
    if image.ndim != 3 or image.shape[2] != 3 or not image.size or not real:
        raise CatalogueError(
            f"{where}: field 'image' is {image.dtype} {list(image.shape)}; give RGB, [height, "
            "width, 3], as uint8 or as floats from 0 to 1."
        )
    if image.dtype != np.uint8:
        # NaN fails this comparison too.
        if not ((image >= 0) & (image <= 1)).all():
            raise CatalogueError(
                f"{where}: field 'image' has floats that are NaN or not from 0 to 1; scale the "
                "picture, or give uint8."
            )
        image = np.rint(255 * image).astype(np.uint8)
    return _resized(Image.fromarray(image))


def _resized(picture: Image.Image) -> np.ndarray:
    if picture.size != (IMAGE_SIDE, IMAGE_SIDE):
        picture = picture.resize((IMAGE_SIDE, IMAGE_SIDE))
    return np.array(picture)


@dataclass(frozen=True, slots=True)
class Review:
    """A review.

    Attributes:
        id: its id, unlike that of any other review of the domain.
        text: what the customer wrote.
        stars: 1 to 5, half ones too; None if there are none.
        sentiment: "positive" or "negative"; None if it is unknown, or is to follow from the stars.
        product: id of the product; None if it is unknown.
    """

    id: str
    text: str
    stars: float | None = None
    sentiment: str | None = None
    product: str | None = None

    @property
    def label(self) -> int | None:
        """Return 1 for a positive review, 0 for a negative one, None if it is neither.

        `sentiment` decides where it is given; else more than 3 stars are positive, fewer negative.
        """
        if self.sentiment is not None:
            return int(self.sentiment == "positive")
        if self.stars is None or self.stars == 3:
            return None
        return int(self.stars > 3)


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a text.

    Attributes:
        id: its id, unlike that of any other question of the domain.
        question: what is asked.
        text: where the answer is looked for.
        answer: the answer as a half-open span of the text's characters; None if there is none.
        product: id of the product; None if it is unknown.
        others: other spans that are right.
    """

    id: str
    question: str
    text: str
    answer: tuple[int, int] | None = None
    product: str | None = None
    others: tuple[tuple[int, int], ...] = ()

    @property
    def golds(self) -> tuple[str, ...]:
        """Return the right answers as written in the text; empty if there is none."""
        spans = () if self.answer is None else (self.answer, *self.others)
        return tuple(self.text[start:end] for start, end in spans)


@dataclass(frozen=True, slots=True)
class Interaction:
    """A customer took a product.

    Attributes:
        user: id of the customer.
        product: id of the product.
        time: when, in any unit that gives the order, such as seconds.
    """

    user: str
    product: str
    time: float


@dataclass(frozen=True)
class Domain:
    """One domain of a catalogue; a part that the domain lacks is an empty tuple.

    Attributes:
        name: its name, which is that of its folder.
        products: what it sells.
        reviews: what customers wrote.
        questions: questions about texts, with their answers.
        interactions: which customer took which product, and when.
    """

    name: str
    products: tuple[Product, ...] = ()
    reviews: tuple[Review, ...] = ()
    questions: tuple[Question, ...] = ()
    interactions: tuple[Interaction, ...] = ()

    def __repr__(self) -> str:
        """Show name and sizes, since a domain may hold a million rows."""
        parts = {name: getattr(self, name) for name in PARTS}
        sizes = (f"{len(p)} {name}" for name, p in parts.items() if isinstance(p, Sized) and p)
        return f"<Domain {self.name!r}: {', '.join(sizes) or 'empty'}>"


_ROWS: Mapping[str, type] = {
    "products": Product,
    "reviews": Review,
    "questions": Question,
    "interactions": Interaction,
}
_ASKED: Mapping[type, tuple[str, ...]] = {
    Product: ("title", "description", "attributes", "image"),
    Review: ("text",),
    Question: ("question", "text"),
}
FILES = tuple(f"{part}.jsonl" for part in PARTS)
"""Names of the files of a domain."""

REJECTS = "rejects.jsonl"
"""Name of the file of lines that an import could not read; it is no part of a domain."""


def read_catalogue(root: Path) -> dict[str, Domain]:
    """Read every domain of a catalogue.

    Args:
        root: a folder with one folder for each domain.

    Returns:
        The domains keyed by name, sorted by name.

    Raises:
        CatalogueError: the folder is missing or unreadable, has no domains, or holds a domain that
            breaks the format in the module's docstring.
    """
    listing = _listing(root)
    if any(path.name in FILES for path in listing):
        raise CatalogueError(
            f"{root}: this is the folder of one domain; give the folder above it, or move the "
            "files into a folder named for the domain."
        )
    folders = [
        path
        for path in listing
        if path.is_dir() and not path.name.startswith(".") and not is_left_by_system(path.name)
    ]
    if not folders:
        raise CatalogueError(f"{root}: no domain in this catalogue; add a folder for each domain.")
    return {folder.name: read_domain(folder) for folder in folders}


def read_domain(folder: Path) -> Domain:
    """Read one domain.

    Args:
        folder: folder with the domain's files; its name is the name of the domain.

    Returns:
        The domain, every part in the order of its file.

    Raises:
        CatalogueError: the first violation of the format in the module's docstring, with file, line
            and field.
    """
    present = {path.name for path in _listing(folder) if not is_left_by_system(path.name)}
    for name in sorted(present):
        # Names like reviews.json, reviews.jsonl.gz or REVIEWS.JSONL would be silently ignored.
        meant = name.lower().removesuffix(".gz")
        meant = meant if meant.endswith(".jsonl") else meant.replace(".json", ".jsonl")
        if name not in (*FILES, REJECTS) and (meant in FILES or meant.endswith(".jsonl")):
            raise CatalogueError(f"{folder / name}: unknown file; {suggestion(meant, FILES)}.")
    raw = {name: read_rows(folder / name) if name in present else () for name in FILES}
    read_image = _image_reader(folder)
    products = tuple(
        Product(**{**row, "image": read_image(where, row.get("image"))})
        for where, row in checked_rows(raw["products.jsonl"], PRODUCT)
    )
    ids = {product.id for product in products}
    return _not_empty(
        Domain(
            name=folder.absolute().name,
            products=products,
            reviews=tuple(
                Review(**row) for _, row in checked_rows(raw["reviews.jsonl"], REVIEW, ids)
            ),
            questions=tuple(
                _question(row) for _, row in checked_rows(raw["questions.jsonl"], QUESTION, ids)
            ),
            interactions=tuple(
                # A user and a product are named by many rows.
                Interaction(sys.intern(row["user"]), sys.intern(row["product"]), row["time"])
                for _, row in checked_rows(raw["interactions.jsonl"], INTERACTION, ids)
            ),
        ),
        folder,
    )


def checked_domain(domain: Domain) -> Domain:
    """Check a domain that was made in Python, as the reader checks one on disk.

    Args:
        domain: the domain. Its parts may be any iterables, pictures may have any size, and products
            that rows refer to need not exist.

    Returns:
        The domain as it would be read: parts are tuples, pictures uint8 [32, 32, 3].

    Raises:
        CatalogueError: the first violation that the reader would refuse, with part, row and field.
    """
    if not isinstance(domain.name, str):
        raise CatalogueError(f"the name of a domain is a text; this one is {domain.name!r}.")
    where = f"domain {domain.name}"
    parts = {part: checked_part(where, part, getattr(domain, part)) for part in PARTS}
    return _not_empty(Domain(domain.name, **parts), f"domain {domain.name}")


def checked_part(where: str, part: str, rows: Any) -> tuple[Any, ...]:
    """Check one part of a domain, such as its reviews; see `checked_domain`.

    Args:
        where: location of the part, for messages.
        part: name of the field of `Domain`.
        rows: rows of the part, in any iterable.

    Returns:
        The rows as they would be read.

    Raises:
        CatalogueError: a row breaks the format, or `rows` holds none.
    """
    made, fields = _ROWS[part], PARTS[part]
    if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
        raise CatalogueError(f"{where}: {part} is {reprlib.repr(rows)}; give a tuple of them.")

    def raw() -> Iterator[tuple[str, dict[str, Any]]]:
        for number, row in enumerate(rows):
            place = f"{where}: {part}[{number}]"
            if type(row) is not made:
                raise CatalogueError(f"{place} is a {type(row).__name__}; give a {made.__name__}.")
            values = _row_of(row)
            if "image" in values:
                # The reader's field is a path.
                pictures[place] = as_picture(place, values.pop("image"))
            yield place, values

    pictures: dict[str, np.ndarray] = {}
    make = _question if made is Question else lambda values: made(**values)
    return tuple(
        make(values | ({"image": pictures.pop(place)} if place in pictures else {}))
        for place, values in checked_rows(raw(), fields)
    )


def checked_example(where: str, example: Any) -> Any:
    """Check the fields of a product, review or question that a prediction reads; drop its label.

    Args:
        where: location of the example, for messages.
        example: the `Product`, `Review` or `Question`.

    Returns:
        The example as it would be read.

    Raises:
        CatalogueError: a field breaks the format in the module's docstring.
    """
    fields = next(PARTS[part] for part, made in _ROWS.items() if made is type(example))
    read: dict[str, Any] = {}
    for name in _ASKED[type(example)]:
        value = getattr(example, name)
        if name == "image":
            read[name] = None if value is None else as_picture(where, value)
            continue
        if name == "attributes" and isinstance(value, Mapping):
            value = dict(value)
        try:
            read[name] = fields[name].convert(value)
        except ValueError as error:
            raise CatalogueError(f"{where}: field {name!r} {error}.") from error
    return type(example)(id=example.id, **read)


def write_domain(domain: Domain, folder: Path) -> None:
    """Write one domain atomically, replacing an older one.

    Args:
        domain: the domain to write; pictures are uint8 [32, 32, 3].
        folder: the folder to write; its last part is the name of the domain.

    Raises:
        CatalogueError: `read_domain` would refuse the domain, the folder's name is not the
            domain's, the folder holds other files than a domain's, or it cannot be written.
    """
    folder = folder.absolute()
    if folder.name != domain.name or domain.name.startswith("."):
        raise CatalogueError(
            f"{folder}: the domain to write is named {domain.name!r}; give a folder of that name, "
            "which must not start with a dot."
        )
    for path in _listing(folder) if folder.exists() else ():
        if path.name not in (*FILES, REJECTS, "images") and not is_left_by_system(path.name):
            raise CatalogueError(
                f"{path}: this is not part of a domain and would be lost if one were written here; "
                "move it or give another folder."
            )
    files = _encoded(_not_empty(domain, folder), folder)
    try:
        with atomic_folder(folder) as new:
            for name, content in files.items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                (new / name).write_bytes(content)
    except OSError as error:
        raise CatalogueError(
            f"{folder}: cannot be written ({error}); make room or give another folder."
        ) from error


def _image_reader(folder: Path) -> Callable[[str, str | None], np.ndarray | None]:
    """Return (where, name) -> the picture of a file in a folder; each file is decoded once."""
    root, known = folder.resolve(), {}

    def read(where: str, name: str | None) -> np.ndarray | None:
        if name is None or name in known:
            return known.get(name)
        path = folder / name
        try:
            if not path.resolve().is_relative_to(root):
                raise CatalogueError(
                    f"{where}: field 'image' names {name!r}, which leads out of {folder}; copy the "
                    "picture into it."
                )
            known[name] = _resized(as_viewed(read_regular(path, MOST)))
        except FileNotFoundError as error:
            raise CatalogueError(
                f"{where}: field 'image' names {name!r}, but there is no such file in {folder}; "
                "add it or leave the field out."
            ) from error
        except CatalogueError:
            raise
        # A name may also be invalid as a path, or lead into a circle of links.
        except Exception as error:  # Pillow's decoders raise many kinds for a damaged file
            raise CatalogueError(
                f"{where}: field 'image' names {name!r}, which is not a readable picture "
                f"({error}); save it again as PNG or JPEG."
            ) from error
        return known[name]

    return read


def _question(row: dict[str, Any]) -> Question:
    answers = row.pop("answers", ())
    if answers:
        row |= {"answer": answers[0], "others": tuple(answers[1:])}
    return Question(**row)


def _values(example: Any) -> dict[str, Any]:
    return {name: getattr(example, name) for name in example.__dataclass_fields__}


def _row_of(example: Any) -> dict[str, Any]:
    """Return the fields of an example as in its line, except that a picture stays an array."""

    def listed(span: Any) -> Any:
        return list(span) if isinstance(span, tuple) else span

    row = {name: value for name, value in _values(example).items() if value is not None}
    if isinstance(attributes := row.get("attributes"), Mapping):
        row["attributes"] = dict(attributes)
    others = row.pop("others", ())
    if "answer" in row:
        row["answer"] = listed(row["answer"])
    if others:
        row["answers"] = [listed(span) for span in (row.pop("answer", None), *others)]
    return row


def _encoded(domain: Domain, folder: Path) -> dict[str, bytes]:
    """Return a domain's files, keyed by path in its folder, checked as the reader checks them."""
    files: dict[str, bytes] = {}
    ids = {product.id for product in domain.products}
    for part, fields in PARTS.items():
        name, rows = f"{part}.jsonl", []
        for number, item in enumerate(getattr(domain, part), start=1):
            where = f"{folder / name}:{number}"
            row = _row_of(item)
            if "image" in row:
                # Named by number, since an id may not be a valid file name.
                path = f"images/{number:06d}.png"
                files[path] = _png(where, row["image"])
                row["image"] = path
            rows.append((where, row))
        for _ in checked_rows(rows, fields, None if fields is PRODUCT else ids):
            pass
        if rows:
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for _, row in rows]
            files[name] = "".join(lines).encode()
    return files


def _png(where: str, image: np.ndarray) -> bytes:
    if image.shape != (IMAGE_SIDE, IMAGE_SIDE, 3) or image.dtype != np.uint8:
        raise CatalogueError(
            f"{where}: field 'image' is {image.dtype} {list(image.shape)}; give uint8 "
            f"[{IMAGE_SIDE}, {IMAGE_SIDE}, 3]."
        )
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return stream.getvalue()


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise CatalogueError(
            f"{folder}: cannot be read as a catalogue folder ({error.strerror}); give a folder "
            "that exists and that you may read."
        ) from error


def _not_empty(domain: Domain, folder: Path | str) -> Domain:
    if not (domain.products or domain.reviews or domain.questions):
        inside = sorted(folder.glob("*/*.jsonl")) if isinstance(folder, Path) else []
        domains = [path.parent for path in inside if path.name in FILES]
        if domains:
            raise CatalogueError(
                f"{folder}: holds domains, but is none; give the folder of one, such as "
                f"{domains[0]}."
            )
        raise CatalogueError(
            f"{folder}: the domain is empty; put at least one line into products.jsonl, "
            "reviews.jsonl or questions.jsonl."
        )
    return domain
