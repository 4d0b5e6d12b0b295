"""Importing a shop's files into a domain of a catalogue, row by row."""

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from metaguide.data.catalogue import FILES, REJECTS
from metaguide.data.catalogue import MOST as MOST_OF_PICTURE
from metaguide.data.importers.source import Place, Reject, Row
from metaguide.data.importers.tables import Options, Reading
from metaguide.data.rows import PARTS, CatalogueError, checked_row, read_rows
from metaguide.data.viewed import as_viewed
from metaguide.files import atomic_folder, is_left_by_system, read_regular

LONGEST_RAW = 4096
"""Number of characters of a rejected line that `rejects.jsonl` keeps."""

Importer = Callable[[Sequence[Path], Options], Reading]
"""(files, options) -> their rows. Products come before the rows that name them."""


@dataclass
class Group:
    """Rows of which the same is said.

    Attributes:
        count: how many there are.
        first: where the first one stands.
        detail: what is said of the first one in particular.
    """

    first: Place
    detail: str
    count: int = 0


@dataclass
class Summary:
    """What an import read.

    Attributes:
        folder: the domain's folder.
        read: number of rows written, keyed by part.
        replaced: number of rows in whose place they stand, keyed by part.
        rejected: what was not, keyed by reason.
        remarks: what was taken for granted, keyed by remark.
        mapping: the columns that were read, keyed by field.
        unread: the columns that were not.
    """

    folder: Path
    read: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)
    rejected: dict[str, Group] = field(default_factory=dict)
    remarks: dict[str, Group] = field(default_factory=dict)
    mapping: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    @property
    def rejects(self) -> int:
        """Number of rejected rows."""
        return sum(group.count for group in self.rejected.values())


def import_domain(
    importer: Importer,
    files: Sequence[Path],
    folder: Path,
    options: Options = Options(),
    *,
    strict: bool = False,
    replace: bool = False,
    tell: Callable[[int], None] = lambda rows: None,
) -> Summary:
    """Import files into a domain.

    Rows are read and written one by one. What cannot be read is left out, counted by reason, and
    written to `rejects.jsonl` in the domain's folder with file and line. The parts that the domain
    already has stay, so that products and reviews may be imported one after the other; if products
    are replaced, what names one that is gone is treated as if it were imported now. The folder
    changes at the end, and all at once.

    A row is known by a 64-bit hash of its id: the chance that one of 10 million rows is taken for a
    duplicate is 1 in 370,000.

    Args:
        importer: how the files are read; see `metaguide.data.importers.FORMATS`.
        files: the files.
        folder: folder of the domain; created if missing.
        options: how values are written, and which column is which field.
        strict: whether the first reject is an error.
        replace: whether parts that the domain already has are replaced.
        tell: called now and then with the number of rows read so far.

    Returns:
        What was read, and what was not.

    Raises:
        CatalogueError: a file cannot be opened or is not of this format; nothing in it can be
            used; the domain has a part already; or, with `strict`, the first reject.
    """
    folder = folder.absolute()
    _check_folder(folder)
    summary = Summary(folder)

    def described(product: str) -> str:
        return writer.description(product)

    if options.descriptions is None:
        options = dataclasses.replace(options, descriptions=described)
    reading = importer(files, options)
    summary.mapping, summary.unread = reading.mapping, reading.unread
    try:
        with atomic_folder(folder) as new:
            with _Writer(new, folder, summary, replace) as writer:
                _write(reading.rows, writer, strict, tell)
                if not summary.read:
                    raise CatalogueError(
                        f"{files[0]}: nothing in it can be imported ({_why(summary)})."
                    )
                writer.check_kept_parts(strict)
            _keep_other_parts(folder, new, summary, FILES if replace else (*FILES, REJECTS))
    except OSError as error:
        raise CatalogueError(
            f"{folder}: cannot be written ({error}); make room or give another folder."
        ) from error
    return summary


def _check_folder(folder: Path) -> None:
    """Check that a folder holds a domain or nothing.

    Raises:
        CatalogueError: it holds other files, or may not be named so.
    """
    if folder.name.startswith("."):
        raise CatalogueError(f"{folder}: the name of a domain must not start with a dot.")
    if folder.exists() and not folder.is_dir():
        raise CatalogueError(f"{folder}: is a file; give the folder of a domain.")
    others = {path.name for path in folder.iterdir()} if folder.exists() else set()
    others = {name for name in others if not is_left_by_system(name)}
    others -= {*FILES, REJECTS, "images"}
    if others:
        raise CatalogueError(
            f"{folder}: holds {min(others)!r}, which is no part of a domain; give another folder, "
            "such as one for each domain inside it."
        )


def _write(
    rows: Iterator[Row | Reject], writer: "_Writer", strict: bool, tell: Callable[[int], None]
) -> None:
    """Write rows one by one; the other arguments are those of `import_domain`."""
    for number, one in enumerate(rows, 1):
        fault = writer.add(one) if isinstance(one, Row) else one
        if fault is not None:
            writer.reject(fault, strict)
        if number % 10_000 == 0:
            tell(number)


def _why(summary: Summary) -> str:
    """Return why nothing was read."""
    reasons = (
        f"{reason}, {group.count:,}, the first at {group.first}"
        + (f": {group.detail}" if group.detail else "")
        for reason, group in summary.rejected.items()
    )
    return "; ".join(reasons) or "it has no rows"


def _keep_other_parts(folder: Path, new: Path, summary: Summary, names: Iterable[str]) -> None:
    """Copy the files of a domain that were not imported to its new folder."""
    for name in names:
        if (folder / name).exists() and not (new / name).exists():
            _link(folder / name, new / name)
    if (folder / "images").is_dir() and "products" not in summary.read:
        shutil.copytree(folder / "images", new / "images", copy_function=_link)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


class _Seen:
    """A set of texts, kept as hashes of 8 bytes."""

    _AT_ONCE = 2**20

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted = np.empty(0, np.int64)

    def __contains__(self, text: str) -> bool:
        """Return whether a text was added."""
        key = hash(text)
        if key in self._recent:
            return True
        place = int(self._sorted.searchsorted(key)) if self._sorted.size else 0
        return place < self._sorted.size and bool(self._sorted[place] == key)

    def add(self, text: str) -> None:
        """Add a text."""
        self._recent.add(hash(text))
        if len(self._recent) >= self._AT_ONCE:
            recent = np.fromiter(self._recent, np.int64, len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, recent]))
            self._recent.clear()


def _products_in(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the products of a domain.

    Raises:
        CatalogueError: a line is no product.
    """
    path = folder / "products.jsonl"
    for where, row in read_rows(path) if path.exists() else ():
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            raise CatalogueError(f"{where}: no product; mend or delete the line.")
        yield row


class _Writer:
    """The files of a new domain, written row by row."""

    def __init__(self, new: Path, folder: Path, summary: Summary, replace: bool):
        self._new, self._folder, self._replace = new, folder, replace
        self._summary = summary
        self._files: dict[str, IO[str]] = {}
        self._stack = ExitStack()
        self._ids = {part: _Seen() for part in PARTS}
        self._texts = _Seen()
        self._pictures = 0
        self._descriptions: dict[str, str] | None = None
        self._are_new = False
        self._encode = json.JSONEncoder(ensure_ascii=False).encode

    def __enter__(self) -> "_Writer":
        """Return the writer."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the files."""
        self._stack.close()

    @cached_property
    def _products(self) -> _Seen:
        """The ids of the products that the domain already has."""
        found = _Seen()
        for row in _products_in(self._folder):
            found.add(row["id"])
        return found

    def description(self, product: str) -> str:
        """Return the description of a product, of those written so far or of those that stay."""
        is_new = "products" in self._files
        if self._descriptions is None or is_new != self._are_new:
            # Read at the first question: most imports have none, and it takes memory.
            if is_new:
                self._files["products"].flush()
            rows = _products_in(self._new if is_new else self._folder)
            self._descriptions = {row["id"]: row.get("description", "") for row in rows}
            self._are_new = is_new
        return self._descriptions.get(product, "")

    def add(self, row: Row) -> Reject | None:
        """Write a row, or return why it cannot be."""
        part, values, place = row.part, row.values, row.place
        if "id" in values and values["id"] in self._ids[part]:
            if row.may_repeat:
                self.remark(f"{part}: named again by a later row", place)
                return None
            return _unwritten(row, "the id of an earlier row", f"id is {values['id']!r}")
        product = values.get("product")
        if product is not None and not self._has_product(product):
            if part == "interactions":
                return _unwritten(row, "a product that is not among the products", repr(product))
            self.remark(f"{part}: a product that is not among the products, left out", place)
            values = {name: value for name, value in values.items() if name != "product"}
        image = values.get("image")
        if image is not None:
            values = {name: value for name, value in values.items() if name != "image"}
        try:
            values = checked_row(values, PARTS[part])
        except ValueError as error:
            return _unwritten(row, "a field that a catalogue cannot hold", str(error))
        if image is not None and (name := self._picture(image, place)):
            values["image"] = name
        for remark in row.remarks:
            self.remark(remark, place)
        if "id" in values:
            self._ids[part].add(values["id"])
        if part == "products" and self._are_new and self._descriptions is not None:
            self._descriptions[values["id"]] = values.get("description", "")
        if part == "reviews":
            if values["text"] in self._texts:
                self.remark("reviews: the text of an earlier one, which a guide reads once", place)
            self._texts.add(values["text"])
        self._file(part).write(self._encode(values) + "\n")
        self._summary.read[part] += 1
        return None

    def _has_product(self, product: str) -> bool:
        return product in (self._ids["products"] if "products" in self._files else self._products)

    def check_kept_parts(self, strict: bool) -> None:
        """Write those parts anew that are kept and name products that were replaced."""
        if "products" not in self._files:
            return
        for part in PARTS:
            path = self._folder / f"{part}.jsonl"
            if part in self._files or not path.exists():
                continue
            named = (row.get("product") for _, row in read_rows(path))
            if all(one is None or one in self._ids["products"] for one in named):
                continue
            read, replaced = self._summary.read.copy(), self._summary.replaced.copy()
            self._replace = True
            self._file(part)  # even if no row stays
            for where, row in read_rows(path):
                place = Place(str(path), int(where.rpartition(":")[2]))
                fault = self.add(Row(part, row, place))
                if fault is not None:
                    self.reject(fault, strict)
            self._summary.read, self._summary.replaced = read, replaced

    def reject(self, fault: Reject, strict: bool) -> None:
        """Count a reject, and write it down; with `strict` it is an error."""
        if strict:
            detail = f" ({fault.detail})" if fault.detail else ""
            raise CatalogueError(f"{fault.place}: {fault.reason}{detail}; nothing was imported.")
        _count(self._summary.rejected, fault.reason, fault.place, fault.detail)
        said = {**fault.place._asdict(), "reason": fault.reason, "detail": fault.detail}
        raw = fault.raw[:LONGEST_RAW].encode(errors="backslashreplace").decode()
        self._file(REJECTS).write(json.dumps({**said, "raw": raw}, ensure_ascii=False) + "\n")

    def remark(self, remark: str, place: Place) -> None:
        """Count a remark."""
        _count(self._summary.remarks, remark, place, "")

    def _file(self, name: str) -> IO[str]:
        """Return the file of a part, or of the rejects."""
        if name not in self._files:
            file = name if name == REJECTS else f"{name}.jsonl"
            is_kept = (self._folder / file).exists()
            if name == REJECTS and is_kept and not self._replace:
                shutil.copyfile(self._folder / file, self._new / file)
            elif is_kept and not self._replace:
                mend = "import to another domain, or ask for these to be replaced"
                if name == "products":
                    mend = f"map no title if that only names products of the domain, or {mend}"
                raise CatalogueError(f"{self._folder}: the domain has {name} already; {mend}.")
            elif is_kept and name != REJECTS:
                with open(self._folder / file, "rb") as old:
                    self._summary.replaced[name] = sum(1 for _ in old)
            opened = open(self._new / file, "a", encoding="utf-8", newline="\n", buffering=2**20)
            self._files[name] = self._stack.enter_context(opened)
        return self._files[name]

    def _picture(self, image: Path | bytes, place: Place) -> str | None:
        """Copy a picture into the domain and return its path there; None if it is none."""
        try:
            content = image if isinstance(image, bytes) else read_regular(image, MOST_OF_PICTURE)
            as_viewed(content)
        # Pillow's decoders raise many kinds of errors for a damaged file.
        except Exception as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else "not readable"
            self.remark(f"products, image: a picture that is left out, {reason}", place)
            return None
        suffix = ".png" if isinstance(image, bytes) else image.suffix.lower()
        self._pictures += 1
        name = f"images/{self._pictures:06d}{suffix}"
        (self._new / "images").mkdir(exist_ok=True)
        (self._new / name).write_bytes(content)
        return name


def _unwritten(row: Row, reason: str, detail: str) -> Reject:
    """Return why a row is not written."""
    raw = json.dumps(row.values, ensure_ascii=False, default=str)
    return Reject(f"{row.part}: {reason}", row.place, detail, raw)


def _count(groups: dict[str, Group], name: str, place: Place, detail: str) -> None:
    group = groups.setdefault(name, Group(place, detail))
    group.count += 1
