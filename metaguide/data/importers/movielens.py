"""MovieLens of any size: movies and who rated them.

The files are `movies.csv` and `ratings.csv`, `movies.dat` and `ratings.dat`, or `u.item` and
`u.data`. A movie's category is its first genre.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from metaguide.data.importers.records import read_csv
from metaguide.data.importers.source import Place, Reject, Row, read_lines, within
from metaguide.data.importers.tables import Options, Reading, converted
from metaguide.data.rows import CatalogueError

_MOVIES = ("movies.csv", "movies.dat", "u.item")
_RATINGS = ("ratings.csv", "ratings.dat", "u.data")

_GENRES = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy "
    "Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War Western"
).split()
"""The genres of `u.item`, in the order of its last columns."""

_SEPARATORS = {"u.item": "|", "u.data": "\t", "movies.dat": "::", "ratings.dat": "::"}


def movielens(files: Sequence[Path], options: Options) -> Reading:
    """Read movies and ratings.

    Args:
        files: the folder that holds the files, or the two files.
        options: only the encoding counts; by default UTF-8 for CSV, and Latin-1 before.

    Raises:
        CatalogueError: there is no file of movies, or none of ratings.
    """
    given = {path.name: path for path in within(files)}
    found = [
        next((given[name] for name in names if name in given), None)
        for names in (_MOVIES, _RATINGS)
    ]
    movies, ratings = found
    if movies is None or ratings is None:
        names = _MOVIES if movies is None else _RATINGS
        raise CatalogueError(f"{files[0]}: no {' or '.join(names)}; give the whole folder.")

    def rows() -> Iterator[Row | Reject]:
        for place, fields, line in _records(movies, options):
            if len(fields) < 2:
                yield Reject("products: fewer fields than a movie has", place, "", line)
                continue
            product = {"id": fields[0], "title": fields[1], "category": _genre(movies, fields)}
            yield converted("products", product, place, line)
        for place, fields, line in _records(ratings, options):
            if len(fields) != 4:
                yield Reject("interactions: not the four fields of a rating", place, "", line)
                continue
            user, product, _, time = fields
            said = {"user": user, "product": product, "time": time}
            yield converted("interactions", said, place, line)

    return Reading(rows())


def _records(path: Path, options: Options) -> Iterator[tuple[Place, list[str], str]]:
    """Yield the fields of each line; a line that cannot be read has none."""
    separator = _SEPARATORS.get(path.name)
    if separator is None:
        for record in read_csv(path, encoding=options.encoding).records:
            if isinstance(record, Reject):
                yield record.place, [], record.raw
            else:
                place, fields, line = record
                yield place, list(map(str, fields.values())), line
        return
    is_guess = options.encoding == "utf-8"
    encoding = "latin-1" if is_guess else options.encoding
    for line in read_lines(path, encoding, is_guess=is_guess):
        place = Place(str(path), line.number)
        text = line.text.rstrip("\r\n")
        if line.fault or text:
            yield place, [] if line.fault else text.split(separator), line.text


def _genre(path: Path, fields: Sequence[str]) -> str | None:
    if path.name == "u.item":
        flags = fields[-len(_GENRES) :]
        return next((name for name, flag in zip(_GENRES, flags, strict=False) if flag == "1"), None)
    first = fields[2].split("|")[0] if len(fields) > 2 else ""
    return None if first.startswith("(no genres") else first or None
