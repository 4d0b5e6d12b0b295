"""TensorFlow Datasets' data sets, prepared and read without TensorFlow, with one clear error."""

import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

Made = TypeVar("Made")

FORMAT = "array_record"
"""The file format that TensorFlow Datasets prepares and reads without TensorFlow."""

Examples = Iterator[tuple[Any, dict[str, Any]]]
"""Examples of a split: (TensorFlow Datasets' own key, which determines the order; features)."""


class DataSet(NamedTuple):
    """A data set of TensorFlow Datasets, whose own generator needs TensorFlow.

    Attributes:
        name: name in TensorFlow Datasets.
        title: name in messages.
        urls: files to download, keyed by any name.
        generators: (builder, downloaded files keyed as `urls`) -> examples, keyed by split.
        hint: the alternative that messages suggest if the data set cannot be provided.
        error: type of the error in that case.
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
        data_set: the data set.
        folder: TensorFlow Datasets' folder of all data sets; None: its default.
        read: (builder, location for messages) -> the content; see `encoded`.
        download: whether to download and prepare a missing data set.

    Returns:
        The result of `read`.

    Raises:
        ValueError: the data set's own error type: the data set is missing and `download` is False,
            or it cannot be downloaded or read.
    """
    import tensorflow_datasets as tfds  # imported here, since it is slow

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
                    f"away, and it is prepared again, or {hint}."
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
    except Exception as error:  # errors of all underlying libraries can come through
        raise error_of(
            f"{where}: {title} cannot be downloaded or read ({type(error).__name__}: {error}); "
            f"fix that, or {hint}."
        ) from error


def encoded(builder: Any, split: str) -> Any:
    """Return the examples of a split in the builder's order, `image` as the bytes of a PNG."""
    import tensorflow_datasets as tfds

    return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})


def _check_network(data_set: DataSet, where: str) -> None:
    # TensorFlow Datasets retries for more than three minutes before it gives up.
    request = urllib.request.Request(next(iter(data_set.urls.values())), method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=20).close()
    except OSError as error:
        # HTTP errors, and certificates that only Python does not know, are left to the download.
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, OSError) and not isinstance(reason, ssl.SSLError):
            raise data_set.error(
                f"{where}: no {data_set.title}, and no way to {request.host} to download it "
                f"({reason}); fix the network, or {data_set.hint}."
            ) from error
