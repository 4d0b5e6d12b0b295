"""The console command `metaguide`: from a shop's files to answers."""

import io
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from metaguide.data.catalogue import CatalogueError, read_domain
from metaguide.data.importers import FORMATS, Group, Options, Summary, format_of, import_domain
from metaguide.data.texts import SomeTexts
from metaguide.files import atomic_write, is_left_by_system

if TYPE_CHECKING:
    from metaguide.choosing import Choice
    from metaguide.guide import AdaptedGuide, Guide

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="A shopping guide for your own shop.",
)

_FORMATS = "\n\n".join(f"  {name:<12} {one.summary}" for name, one in FORMATS.items())

_IMPORT_HELP = f"""Import files into a domain of a catalogue.

    metaguide import my.csv my_shop/garden --map=title:name,category:cat

Products first, then reviews that name them: what the domain already has stays. Lines that cannot be
read are counted by reason, and written to rejects.jsonl in the domain's folder.

\b
Formats:
{_FORMATS.replace(chr(10) * 2, chr(10))}

\b
Fields to map, for a table: of products id, title, description, category, image, attributes.NAME; of
reviews id, text, stars or sentiment, product; of questions id, question, answer, product, text (by
default the product's description); of interactions user, product, time. Without --map, the columns
that are named so.
"""


GuideFolder = Annotated[
    Path,
    typer.Option(help="A trained guide's folder, or a pretrained encoder's from Hugging Face."),
]
EncoderFolder = Annotated[
    Path | None, typer.Option(help="The encoder's folder, if it is not where it was.")
]
Unlabelled = Annotated[
    int, typer.Option(min=0, help="At most how many other examples to read, without labels.")
]
Prefix = Annotated[str, typer.Option(help="Put before every text: 'query: ' for the e5 encoders.")]
Length = Annotated[int, typer.Option(min=1, help="Longest text of an encoder, in tokens.")]
Cache = Annotated[
    Path | None,
    typer.Option(help="Folder that keeps an encoder's vectors, which stay in memory too."),
]
Columns = Annotated[
    str, typer.Option(metavar="FIELD:COLUMN,...", help="Which column holds which field.")
]
Names = Annotated[str, typer.Option(metavar="NAME,...", help="Names of columns without a header.")]
Delimiter = Annotated[str, typer.Option(help="What separates columns; found by default.")]
Unquoted = Annotated[
    bool, typer.Option("--no-quotes", help="Quotes are part of the texts, and enclose nothing.")
]
Encoding = Annotated[str, typer.Option(help="Such as gb18030 or cp1252.")]
TimeFormat = Annotated[str, typer.Option(help="How times are written, such as %d.%m.%Y.")]
OwnMethod = Annotated[
    bool,
    typer.Option(
        "--own-method", help="Keep the guide's own method, even if another is clearly better."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print what was found or done as JSON.")]


FLAGS = {
    "say how times are written": "--time-format=%d.%m.%Y",
    "say which words are positive and which are negative": "--positive=WORDS --negative=WORDS",
    "name the columns": "--columns=NAME,...",
    "ask for these to be replaced": "--replace",
    "say in which encoding it is, such as gb18030": "--encoding=gb18030",
    "if quotes are part of the texts, say so": "--no-quotes",
}
"""What the library asks for, and the option that says it."""


class Refusal(Exception):
    """Something that the user has to mend; the message says what."""


def main() -> None:
    """Run the command; every error is one line that says what to do."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may know ASCII alone
    warnings.formatwarning = lambda message, *_: f"note: {message}\n"
    try:
        app()
    # The package's own errors are ValueErrors.
    except (OSError, ValueError, Refusal) as error:
        print(f"metaguide: {_with_flags(str(error))}", file=sys.stderr)
        raise SystemExit(1) from error


def _with_flags(said: str) -> str:
    """Return a message with the options behind what it asks for."""
    for asked, flag in FLAGS.items():
        said = said.replace(asked, f"{asked} ({flag})")
    return said


@app.command("import", help=_IMPORT_HELP)
def import_(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="FILES... DOMAIN", help="The files, and last the domain's folder."),
    ],
    output: Annotated[
        Path | None, typer.Option(help="The domain's folder, if it is not the last argument.")
    ] = None,
    format: Annotated[
        str, typer.Option(metavar="NAME", help="One of the formats; by default the name tells.")
    ] = "",
    map: Columns = "",
    columns: Names = "",
    delimiter: Delimiter = "",
    no_quotes: Unquoted = False,
    encoding: Encoding = "utf-8",
    time_format: TimeFormat = "",
    stars_out_of: Annotated[float, typer.Option(help="The best rating.")] = 5,
    positive: Annotated[
        str, typer.Option(metavar="WORD,...", help="The words for a positive sentiment.")
    ] = "",
    negative: Annotated[
        str, typer.Option(metavar="WORD,...", help="The words for a negative sentiment.")
    ] = "",
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first line that cannot be read.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace what the domain already has of these parts.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Import files into a domain."""
    files, folder = (paths, output) if output is not None else (paths[:-1], paths[-1])
    if not files:
        raise Refusal("give the files and the domain's folder, as in: import my.csv my_shop/garden")
    if format and format not in FORMATS:
        raise Refusal(f"there is no format {format!r}; there are {', '.join(FORMATS)}")
    known = format or format_of(files[0])
    options = _options(
        map,
        columns,
        delimiter,
        encoding,
        is_quoted=not no_quotes,
        time_format=time_format,
        most_stars=stars_out_of,
        positive=tuple(word.lower() for word in _words(positive)),
        negative=tuple(word.lower() for word in _words(negative)),
    )
    start = time.monotonic()
    with _counting("rows") as tell:
        summary = import_domain(
            FORMATS[known].importer,
            files,
            folder,
            options,
            strict=strict,
            replace=replace,
            tell=tell,
        )
    if as_json:
        print(json.dumps(_summary_json(summary), ensure_ascii=False, indent=2))
    else:
        for line in _summary_lines(summary, folder, known, time.monotonic() - start):
            print(line)


@app.command()
def check(
    shop: Annotated[Path, typer.Argument(help="A catalogue, or the folder of one domain.")],
    shots: Annotated[int, typer.Option(min=1, help="Examples of each class to adapt to.")] = 5,
    as_json: Json = False,
) -> None:
    """Say what a shop's domains hold, and which tasks they allow.

    metaguide check my_shop
    """
    from metaguide.data.catalogue import FILES
    from metaguide.overview import overview

    is_domain = any((shop / name).exists() for name in FILES)
    folders = [shop] if is_domain else _domains(shop)
    found, faults = [], []
    for folder in folders:
        try:
            found.append(overview(read_domain(folder), shots))
        except CatalogueError as error:
            faults.append(str(error))
    if as_json:
        tasks = [{**one._asdict(), "tasks": _plain(one.tasks)} for one in found]
        print(json.dumps({"domains": tasks, "faults": faults}, ensure_ascii=False, indent=2))
    else:
        for one in found:
            for line in _overview_lines(one):
                print(line)
    if faults:
        raise Refusal("; ".join(faults))
    if not as_json and folders:
        output = f"{folders[0].name}.guide"
        print(f"next: metaguide adapt {folders[0]} --guide=RUN_OR_ENCODER --output={output}")


@app.command()
def adapt(
    domain: Annotated[Path, typer.Argument(help="The domain's folder.")],
    guide: GuideFolder,
    output: Annotated[Path, typer.Option(help="The folder to save the adapted guide to.")],
    shots: Annotated[int, typer.Option(min=0, help="Examples of each class to adapt to.")] = 5,
    unlabelled: Unlabelled = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw of examples.")] = 0,
    encoder: EncoderFolder = None,
    prefix: Prefix = "",
    length: Length = 128,
    cache: Cache = None,
    own_method: OwnMethod = False,
    with_encoder: Annotated[
        bool, typer.Option("--with-encoder", help="Copy the encoder, so that the guide can move.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Adapt a guide to a domain, and save it.

    metaguide adapt my_shop/garden --guide=bge-small-en-v1.5 --output=garden.guide

    Each task is served by the guide's own method, unless another one, plain baselines
    included, is clearly better on your examples when they are held back in turn.
    """
    from metaguide.choosing import best
    from metaguide.run_config import MOST_STEPS
    from metaguide.saved import check_replaceable

    start = time.monotonic()
    if shots > MOST_STEPS:
        raise Refusal(f"--shots is {shots}; give at most {MOST_STEPS}")
    check_replaceable(output)
    shop = read_domain(domain)
    found = _trained(guide, encoder, prefix, length, cache)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        adapted = found.adapt(shop, shots, seed, unlabelled=unlabelled)
        adapted, choices = (adapted, {}) if own_method else best(adapted)
    adapted.save(output, with_encoder)
    notes = _notes(caught)
    if as_json:
        counts = {task: len(one.chosen) for task, one in adapted.adapted.items()}
        said = {"guide": str(output), "examples": counts, "methods": _plain(choices)}
        print(json.dumps({**said, "notes": notes}, ensure_ascii=False, indent=2))
        return
    print(f"{output} ({time.monotonic() - start:.1f} s)")
    for task, one in adapted.adapted.items():
        method = choices[task].method if task in choices else adapted.guide.serving[task].method
        print(f"  {task:<15} by {method}, adapted to {len(one.chosen)} examples")
        if task in choices and choices[task].accuracy:
            print(f"  {'':<15} {_choice_line(choices[task])}")
    for note in notes:
        print(f"  {note}")
    print(f"next: metaguide predict {output} --input=new.csv --output=answers.csv")


@app.command()
def evaluate(
    domain: Annotated[Path, typer.Argument(help="The domain's folder.")],
    guide: GuideFolder,
    shots: Annotated[
        str, typer.Option(metavar="NUMBER,...", help="Examples of each class to adapt to.")
    ] = "0,1,5,10,20",
    draws: Annotated[int, typer.Option(min=1, help="Draws of examples for each number.")] = 5,
    queries: Annotated[int, typer.Option(min=1, help="Most held-back examples to score.")] = 500,
    unlabelled: Unlabelled = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split and of the draws.")] = 0,
    encoder: EncoderFolder = None,
    prefix: Prefix = "",
    length: Length = 128,
    cache: Cache = None,
    own_method: OwnMethod = False,
    report: Annotated[
        Path | None, typer.Option(help="A page to write, such as report.html.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a guide knows of a domain, and what each further label buys.

    metaguide evaluate my_shop/garden --guide=bge-small-en-v1.5 --report=report.html

    Half of your labels are held back and asked. Baselines that see the same examples stand beside
    the guide, and the last lines name the examples to label next.
    """
    counts = [int(word) if word.isdecimal() else -1 for word in _words(shots)]
    if not counts or min(counts) < 0:
        raise Refusal(f"--shots is {shots!r}; write numbers, as in 0,1,5")
    if report is not None and not report.absolute().parent.is_dir():
        raise Refusal(f"{report}: there is no folder {report.parent}; make it, or give another")
    from metaguide import evaluation_report
    from metaguide.choosing import CANDIDATES
    from metaguide.evaluating import evaluate as evaluated

    shop = read_domain(domain)
    with tempfile.TemporaryDirectory() as folder, _counting("shots") as tell:
        # Without a cache, every draw would encode the same texts again.
        found = evaluated(
            _trained(guide, encoder, prefix, length, cache or Path(folder)),
            shop,
            counts,
            draws=draws,
            queries=queries,
            unlabelled=unlabelled,
            seed=seed,
            candidates=() if own_method else CANDIDATES,
            tell=lambda task, count: tell(count),
        )
    if as_json:
        plain = [evaluation_report.as_json(one) for one in found]
        print(json.dumps(plain, ensure_ascii=False, indent=2))
    else:
        for one in found:
            for line in evaluation_report.as_text(one):
                print(line)
    if report is not None:
        content = evaluation_report.as_page(found, domain.name, guide.name)
        try:
            with atomic_write(report) as file:
                file.write(content.encode())
        except OSError as error:
            raise Refusal(f"{report}: cannot be written ({error.strerror})") from error
        if not as_json:
            print(f"{report}: the same as a page, with pictures and the texts to label next")


@app.command()
def predict(
    guide: Annotated[Path, typer.Argument(help="A saved guide.")],
    input: Annotated[Path, typer.Option(help="A table: CSV, TSV, JSON lines or Parquet.")],
    output: Annotated[Path, typer.Option(help="The table to write: .csv, .tsv or .jsonl.")],
    format: Annotated[
        str, typer.Option(metavar="NAME", help="The input's format; by default the name tells.")
    ] = "",
    map: Columns = "",
    columns: Names = "",
    delimiter: Delimiter = "",
    no_quotes: Unquoted = False,
    encoding: Encoding = "utf-8",
    time_format: TimeFormat = "",
    top: Annotated[int, typer.Option(min=1, help="Products to rank for each user.")] = 10,
    encoder: EncoderFolder = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Answer every row of a table, and write the rows with their answers.

    metaguide predict garden.guide --input=new_reviews.csv --output=answers.csv

    A row with a question is a question, one with a text a review, one with a title a product; rows
    with user, product and time are what users took.
    """
    from metaguide.predicting import predict_file

    options = _options(
        map, columns, delimiter, encoding, is_quoted=not no_quotes, time_format=time_format
    )
    start = time.monotonic()
    found = _adapted(guide, encoder, cache)
    with warnings.catch_warnings(record=True) as caught, _counting("rows") as tell:
        warnings.simplefilter("always", UserWarning)
        done = predict_file(found, input, output, options, format=format, top=top, tell=tell)
    if as_json:
        said = {"output": str(output), **done._asdict(), "notes": _notes(caught)}
        print(json.dumps(said, ensure_ascii=False, indent=2))
        return
    print(f"{output}: {done.answered:,} of {done.task} ({time.monotonic() - start:.1f} s)")
    if done.unread:
        print(f"  without an answer: {done.unread:,}, the first at {_with_flags(done.first)}")
    for note in _notes(caught):
        print(f"  {note}")


def _trained(
    guide: Path, encoder: Path | None, prefix: str, length: int, cache: Path | None
) -> "Guide":
    """Return the guide in a folder, of a run or on a pretrained encoder."""
    import metaguide
    from metaguide.guide import AdaptedGuide
    from metaguide.pretrained import is_encoder

    if is_encoder(guide):
        if encoder is not None:
            raise Refusal(f"{guide}: is an encoder itself; leave --encoder out")
        return metaguide.from_encoder(guide, prefix=prefix, length=length, cache=cache)
    found = metaguide.load(guide, encoder=encoder, cache=cache)
    if isinstance(found, AdaptedGuide):
        raise Refusal(f"{guide}: is adapted already; give the guide that it was adapted from")
    return found


def _notes(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    """Return what warnings say; of many of one kind, their sum, or the first and their number."""
    kinds: dict[type[Warning], list[Any]] = {}
    for one in caught:
        kinds.setdefault(one.category, []).append(one.message)
    notes = []
    for kind, found in kinds.items():
        said = [str(one) for one in found]
        if issubclass(kind, SomeTexts):
            count, of = sum(one.count for one in found), sum(one.of for one in found)
            notes.append(str(kind(count, of, *found[0].about)))
        elif kind is UserWarning or len(said) == 1:
            notes += dict.fromkeys(said)
        else:
            notes.append(f"{said[0]} (the first of {len(said):,} such notes)")
    return notes


@app.command()
def serve(
    guide: Annotated[Path, typer.Argument(help="A saved guide.")],
    host: Annotated[str, typer.Option(help="Any but this machine's own needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.")] = 8080,
    token: Annotated[
        str, typer.Option(envvar="METAGUIDE_TOKEN", help="What requests have to carry.")
    ] = "",
    save_to: Annotated[
        Path | None, typer.Option(help="Folder that a guide taught in the page may be saved to.")
    ] = None,
    encoder: EncoderFolder = None,
    cache: Cache = None,
) -> None:
    """Serve a saved guide: a page to ask and to teach it, and an API.

    metaguide serve garden.guide
    """
    try:
        from metaguide import web
    except ModuleNotFoundError as error:
        raise Refusal(
            f"{error.name} is not installed; run pip install 'metaguide[serve]'"
        ) from error
    from metaguide.saved import check_replaceable

    if save_to is not None:
        check_replaceable(save_to)
    web.serve(_adapted(guide, encoder, cache), host, port, token, save_to)


@app.command()
def export(
    guide: Annotated[Path, typer.Argument(help="A saved guide.")],
    output: Annotated[Path, typer.Option(help="The folder to write.")],
    format: Annotated[str, typer.Option(metavar="NAME", help="onnx or vectors.")] = "onnx",
    task: Annotated[
        str | None, typer.Option(help="classification or sentiment, if the guide answers both.")
    ] = None,
    encoder: EncoderFolder = None,
    as_json: Json = False,
) -> None:
    """Export a task of a saved guide, to serve it without Python.

    metaguide export garden.guide --output=garden_onnx --task=sentiment

    The folder holds an ONNX model from tokens to probabilities, the tokenizer, and a README; with
    --format=vectors, the weights and the formula from an encoder's vector to probabilities. It is
    written only if its answers are those of the guide.
    """
    try:
        from metaguide import exporting
    except ModuleNotFoundError as error:
        raise Refusal(
            f"{error.name} is not installed; run pip install 'metaguide[export]'"
        ) from error
    found = exporting.export(_adapted(guide, encoder, None), output, format=format, task=task)
    if as_json:
        print(json.dumps({**found._asdict(), "folder": str(output)}, indent=2))
        return
    print(f"{output}: {found.task}, {found.bytes / 1e6:,.1f} MB")
    print(
        f"  compared with the guide on {found.examples} examples; the largest difference of a "
        f"probability is {found.difference:.1e}"
    )
    print(f"next: read {output / 'README.md'}")


def _adapted(guide: Path, encoder: Path | None, cache: Path | None) -> "AdaptedGuide":
    """Return the guide that was adapted and saved in a folder."""
    import metaguide
    from metaguide.guide import AdaptedGuide
    from metaguide.pretrained import is_encoder

    found = None if is_encoder(guide) else metaguide.load(guide, encoder=encoder, cache=cache)
    if not isinstance(found, AdaptedGuide):
        raise Refusal(f"{guide}: is not adapted to a domain; adapt it: metaguide adapt --help")
    return found


def _options(map: str, columns: str, delimiter: str, encoding: str, **others: Any) -> Options:
    """Return how a table is to be read.

    Raises:
        Refusal: an option cannot be used.
    """
    try:
        return Options(
            mapping=_mapping(map),
            columns=_words(columns),
            delimiter={"tab": "\t", "\\t": "\t"}.get(delimiter, delimiter),
            encoding=encoding,
            **others,
        )
    except ValueError as error:
        raise Refusal(str(error)) from error


def _domains(shop: Path) -> list[Path]:
    try:
        listing = sorted(shop.iterdir())
    except OSError as error:
        raise Refusal(f"{shop}: cannot be read ({error.strerror}); give a folder") from error
    folders = [
        one
        for one in listing
        if one.is_dir() and not one.name.startswith(".") and not is_left_by_system(one.name)
    ]
    if not folders:
        raise Refusal(f"{shop}: holds no domain; make one: metaguide import my.csv {shop}/garden")
    return folders


def _plain(tasks: Mapping[str, Any]) -> dict[str, Any]:
    return {name: one._asdict() for name, one in tasks.items()}


def _choice_line(choice: "Choice") -> str:
    """Return how the methods predict the examples when these are held back."""
    shown = ", ".join(f"{method} {value:.2f}" for method, value in choice.accuracy.items())
    what = "right on examples that were held back"
    if choice.measure != "accuracy":
        what = f"{choice.measure} of the last products of users, held back"
    return f"{what}: {shown}".replace(" 0.", " .")


def _overview_lines(one: Any) -> Iterator[str]:
    rows = ", ".join(f"{count:,} {part}" for part, count in one.rows.items() if count)
    yield f"{one.name}: {rows}"
    for name, task in one.tasks.items():
        largest = sorted(task.counts.items(), key=lambda item: -item[1])
        counts = ", ".join(f"{label} {count:,}" for label, count in largest[:4])
        more = f", and {len(largest) - 4} more" if len(largest) > 4 else ""
        said = "; ".join(part for part in (f"{counts}{more}", *task.notes) if part)
        yield f"  {name:<15} {'yes' if task.is_possible else 'no':<4} {said}"
    for note in one.notes:
        yield f"  {note}"


def _summary_lines(summary: Summary, folder: Path, format: str, seconds: float) -> Iterator[str]:
    yield f"{folder} (read as {format}, {seconds:.1f} s)"
    for part, count in summary.read.items():
        before = f" in the place of {old:,}" if (old := summary.replaced.get(part)) else ""
        yield f"  {part:<12} {count:>9,}{before}"
    if summary.mapping:
        columns = ", ".join(f"{name} from {column!r}" for name, column in summary.mapping.items())
        yield f"  {columns}"
    if summary.unread:
        yield f"  columns not read: {', '.join(map(repr, summary.unread))}"
    if summary.rejected:
        yield f"rejected, {summary.rejects:,} in all; they are in {folder}/rejects.jsonl:"
        yield from _group_lines(summary.rejected)
    if summary.remarks:
        yield "taken for granted:"
        yield from _group_lines(summary.remarks)
    yield f"next: metaguide check {folder.parent}"


def _group_lines(groups: Mapping[str, Group]) -> Iterator[str]:
    for reason, group in sorted(groups.items(), key=lambda item: -item[1].count):
        detail = f": {group.detail}" if group.detail else ""
        yield _with_flags(f"  {group.count:>9,} {reason} (first at {group.first}{detail})")


def _summary_json(summary: Summary) -> dict[str, Any]:
    def plain(groups: Mapping[str, Group]) -> dict[str, Any]:
        return {
            reason: {**asdict(group), "first": group.first._asdict()}
            for reason, group in groups.items()
        }

    return {
        "folder": str(summary.folder),
        "read": dict(summary.read),
        "replaced": dict(summary.replaced),
        "rejected": plain(summary.rejected),
        "remarks": plain(summary.remarks),
        "mapping": dict(summary.mapping),
        "unread": list(summary.unread),
    }


def _mapping(text: str) -> dict[str, str]:
    """Parse "field:column,field:column"; a column may hold colons, but no commas.

    Raises:
        ValueError: it is not written so, or maps a field twice.
    """
    found: dict[str, str] = {}
    for pair in _words(text):
        name, colon, column = (word.strip() for word in pair.partition(":"))
        if not (name and colon and column):
            raise ValueError(f"--map has {pair!r}; write FIELD:COLUMN, as in title:name")
        if name in found:
            raise ValueError(f"--map has {name} twice; map it to one column")
        found[name] = column
    return found


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


@contextmanager
def _counting(unit: str) -> Iterator[Any]:
    """Show a growing number on a terminal; elsewhere nothing."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda count: None
        return
    with console.status(f"0 {unit}") as status:
        yield lambda count: status.update(f"{count:,} {unit}")
