"""Data sets of TensorFlow Datasets, made and read without TensorFlow, with one clear error."""

import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

Made = TypeVar("Made")

FORMAT = "array_record"
"""What TensorFlow Datasets prepares and reads without TensorFlow."""

Examples = Iterator[tuple[Any, dict[str, Any]]]
"""Of a split: (TensorFlow Datasets' own key, which decides on the order; the features)."""


class DataSet(NamedTuple):
    """A data set of TensorFlow Datasets, whose own generator needs TensorFlow.

    Attributes:
        name: there.
        title: in messages.
        urls: what is downloaded, by any name.
        generators: (builder, downloaded files by the names of `urls`) -> examples by split.
        hint: what else one can do where it cannot be had, for messages.
        error: what is raised then.
    """

    name: str
    title: str
    urls: Mapping[str, str]
    generators: Callable[[Any, Mapping[str, Path]], Mapping[str, Examples]]
    hint: str
    error: type[ValueError]


def read_prepared(
    data_set: DataSet, folder: Path | None, read: Callable[[Any, str], Made], download: bool = True
) -> Made:
    """Read a data set that TensorFlow Datasets has prepared, or prepare it first.

    Args:
        data_set: which.
        folder: TensorFlow Datasets' folder of all data sets; None: its own.
        read: (builder, where it stands, for messages) -> what is read; see `encoded`.
        download: whether to download and prepare what is not there.

    Returns:
        What `read` returns.

    Raises:
        ValueError: the data set's own error: it is not there and not to be downloaded, or cannot
            be downloaded or read.
    """
    import tensorflow_datasets as tfds  # slow, and only who reads through it waits for it

    where = "TensorFlow Datasets" if folder is None else f"TensorFlow Datasets in {folder}"
    title, hint, error_of = data_set.title, data_set.hint, data_set.error
    try:
        builder: Any = tfds.builder(data_set.name, data_dir=folder)
        if builder.is_prepared():
            known = sorted(known.value for known in builder.info.available_file_formats())
            if FORMAT not in known:
                raise error_of(
                    f"{builder.data_path}: {title} was prepared there as {' and '.join(known)}, "
                    f"and only {FORMAT} is read without TensorFlow; delete that folder or move it "
                    f"away, and it is prepared anew, or {hint}."
                )
        else:
            if not download:
                raise error_of(f"{where}: no {title}; allow the download, or {hint}.")
            _check_network(data_set, where)
            builder = tfds.builder(data_set.name, data_dir=folder, file_format=FORMAT)

            def generators(downloads: Any) -> Mapping[str, Examples]:
                files = downloads.download(dict(data_set.urls))
                return data_set.generators(builder, {key: Path(files[key]) for key in files})

            builder._split_generators = generators
            builder.download_and_prepare()
        return read(builder, where)
    except error_of:
        raise
    except Exception as error:  # it lets through the errors of all libraries that it stands on
        raise error_of(
            f"{where}: {title} cannot be downloaded or read ({type(error).__name__}: {error}); "
            f"fix that, or {hint}."
        ) from error


def encoded(builder: Any, split: str) -> Any:
    """Return the examples of a split in the builder's order, `image` as the bytes of a PNG."""
    import tensorflow_datasets as tfds

    return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})


def _check_network(data_set: DataSet, where: str) -> None:
    # TensorFlow Datasets tries for more than three minutes before it gives up.
    request = urllib.request.Request(next(iter(data_set.urls.values())), method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=20).close()
    except OSError as error:
        # An answer that is an error, or a certificate unknown to Python alone, is its to judge.
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, OSError) and not isinstance(reason, ssl.SSLError):
            raise data_set.error(
                f"{where}: no {data_set.title}, and no way to {request.host} to download it "
                f"({reason}); fix the network, or {data_set.hint}."
            ) from error
