"""Omniglot: the archive, TensorFlow Datasets without TensorFlow, the splits, the table."""

import io
import os
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metaguide.data import omniglot
from metaguide.data.omniglot import (
    ARCHIVE,
    Drawings,
    OmniglotError,
    random_split,
    read_archive,
    read_drawings,
    read_tfds,
    table,
    vinyals_split,
)

# By name, and by the number that its files begin with: the two orders differ, as in the original.
CHARACTERS = {"Greek/character01": 5, "Greek/character02": 1, "Magi_(old)/character03": 3}
EVALUATION = {"ULOG/character01": 2, "ULOG/character02": 4}


def cells(number: int, drawing: int) -> np.ndarray:
    """What is drawn: 7 by 7 cells, True for ink, another one for each drawing."""
    return np.random.default_rng([number, drawing]).random((7, 7)) < 0.3


def png(ink: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(~ink).save(stream, "PNG")
    return stream.getvalue()


def pictures(root: str, characters: Mapping[str, int], scale: int) -> dict[str, bytes]:
    block = np.ones((scale, scale), bool)
    return {
        f"{root}/{name}/{number:04d}_{drawing:02d}.png": png(np.kron(cells(number, drawing), block))
        for name, number in characters.items()
        for drawing in range(1, 21)
    }


def contents() -> dict[str, bytes]:
    def turned(*names):
        return "".join(f"{name}/rot{turn * 90:03d}\n" for name in names for turn in range(4))

    first, second, third = CHARACTERS
    return {
        **dict(reversed(pictures("omniglot/images", CHARACTERS, 4).items())),
        "omniglot/images/.DS_Store": b"no picture",
        "omniglot/splits/vinyals/train.txt": turned(third, first).encode(),
        "omniglot/splits/vinyals/val.txt": b"",
        "omniglot/splits/vinyals/test.txt": turned(second).strip().encode(),
    }


def pack(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def unpack(folder: Path, members: Mapping[str, bytes]) -> Path:
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder / "omniglot"


def test_reads_zip_and_folder(tmp_path: Path) -> None:
    """Faults: paper is ink; characters or drawings come in the order of the zip; a file that is no
    picture is read as one; the unzipped folder reads otherwise."""
    packed = read_archive(pack(tmp_path / ARCHIVE, contents()))
    unpacked = read_archive(unpack(tmp_path, contents()))
    for drawings in (packed, unpacked):
        assert drawings.names == tuple(sorted(CHARACTERS))
        assert drawings.images.shape == (3, 20, 28, 28) and drawings.images.dtype == np.uint8
        for name, images in zip(drawings.names, drawings.images, strict=True):
            for place, image in enumerate(images):
                ink = np.kron(cells(CHARACTERS[name], place + 1), np.ones((4, 4), bool))
                np.testing.assert_array_equal(image, np.where(ink, 255, 0))


MEMBER = "omniglot/images/Greek/character02/0001_07.png"
SPLIT = "omniglot/splits/vinyals/test.txt"


@pytest.mark.parametrize("lay", [pack, unpack])
@pytest.mark.parametrize(
    ("member", "content", "words"),
    [
        (MEMBER, b"not a picture", rf"{MEMBER}: broken picture .*get it again"),
        (MEMBER, png(np.eye(28) > 0)[:-30], rf"{MEMBER}: broken picture .*get it again"),
        (MEMBER, png(np.eye(28) > 0)[:20], rf"{MEMBER}: broken picture .*get it again"),
        (MEMBER, png(np.ones((28, 27), bool)), rf"{MEMBER}: 27x28, not 28x28; get it again"),
        (MEMBER, None, r"Greek/character02 has 19 drawings, not 20; get it again"),
        (MEMBER + ".png", png(np.eye(28) > 0), r"Greek/character02 has 21 drawings, not 20"),
    ],
)
def test_a_bad_picture_is_named(tmp_path: Path, lay, member, content, words) -> None:
    """Faults: a damaged, foreign, missing or surplus picture passes, or ends in Pillow's error, or
    the message lacks the member or the fix."""
    members = {**contents(), member: content}
    path = lay(tmp_path / ARCHIVE, {k: v for k, v in members.items() if v is not None})
    with pytest.raises(OmniglotError, match=words) as error:
        read_archive(path)
    assert str(path) in str(error.value)


def test_a_bad_archive_is_named(tmp_path: Path) -> None:
    """Fault: a missing, foreign, cut or damaged archive ends in another library's error."""
    with pytest.raises(OmniglotError, match=r"none.zip: no such file; put .*METAGUIDE_DATA_DIR"):
        read_archive(tmp_path / "none.zip")
    whole = pack(tmp_path / ARCHIVE, contents()).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OmniglotError, match="cut.zip: cannot be read .*get it again"):
        read_archive(tmp_path / "cut.zip")
    hurt = bytearray(whole)
    hurt[whole.index(b"IDAT", whole.index(MEMBER.encode())) + 9] ^= 255
    (tmp_path / "hurt.zip").write_bytes(hurt)
    with pytest.raises(OmniglotError, match=f"hurt.zip: {MEMBER}: cannot be read .*get it again"):
        read_archive(tmp_path / "hurt.zip")
    with pytest.raises(OmniglotError, match="other.zip: no picture of a character in it"):
        read_archive(pack(tmp_path / "other.zip", {"readme.txt": b"hello"}))


@pytest.mark.parametrize("lay", [pack, unpack])
def test_what_macos_adds_is_no_picture(tmp_path: Path, lay) -> None:
    """Fault: an archive that macOS packed again has drawings too many, or broken ones."""
    own = contents()
    added = {f"__MACOSX/{Path(name).parent}/._{Path(name).name}": b"x" for name in own}
    added |= {f"{Path(name).parent}/._{Path(name).name}": b"x" for name in own}
    added |= {"omniglot/.DS_Store": b"x", "omniglot/images/Greek/.DS_Store": b"x"}
    added |= {"omniglot/images/__MACOSX/Greek/1.png": b"x"}
    path = lay(tmp_path / ARCHIVE if lay is pack else tmp_path, {**added, **own})
    assert read_archive(path).names == tuple(sorted(CHARACTERS))
    assert vinyals_split(tmp_path, tuple(sorted(CHARACTERS)))["train"].shape == (8, 2)


@pytest.mark.parametrize("lay", [pack, unpack])
def test_an_archive_larger_than_it_may_be_is_not_unpacked(tmp_path: Path, monkeypatch, lay) -> None:
    """Faults: members that are each small enough fill the memory together; a picture of a kilobyte
    is decoded to gigabytes before its size is looked at."""
    path = lay(tmp_path / ARCHIVE if lay is pack else tmp_path, contents())
    monkeypatch.setattr(omniglot, "MOST_ALL", 3_000)
    with pytest.raises(OmniglotError, match="cannot be read .it holds more than .*get it again"):
        read_archive(path)
    monkeypatch.undo()
    head = png(np.ones((28, 28), bool))
    large = bytearray(head)
    large[16:24] = (60_000).to_bytes(4, "big") * 2
    large[29:33] = zlib.crc32(bytes(large[12:29])).to_bytes(4, "big")
    path = lay(tmp_path / "b" / ARCHIVE if lay is pack else tmp_path / "b", {MEMBER: bytes(large)})
    with pytest.raises(OmniglotError, match=rf"{MEMBER}: (60000x60000, not|broken picture)"):
        read_archive(path)


def test_an_archive_that_is_no_regular_file_is_one_error(tmp_path: Path) -> None:
    """Fault: a named pipe hangs."""
    os.mkfifo(tmp_path / ARCHIVE)
    with pytest.raises(OmniglotError, match="cannot be read .it is no regular file.; get it again"):
        read_archive(tmp_path / ARCHIVE)


def test_the_archive_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults: what is there is downloaded; what TensorFlow Datasets made is taken for the unzipped
    archive; a misspelt folder is made and filled."""
    asked = []
    monkeypatch.setattr(omniglot, "read_tfds", lambda folder: asked.append(folder) or made)
    made = Drawings(("a/character01",), np.zeros((1, 20, 28, 28), np.uint8))
    (tmp_path / "omniglot" / "3.0.0").mkdir(parents=True)
    assert read_drawings(None) is read_drawings(tmp_path) is made
    assert asked == [None, tmp_path]
    unpack(tmp_path, contents())
    assert len(read_drawings(tmp_path).names) == 3
    pack(tmp_path / ARCHIVE, {"omniglot/images/b/c/1.png": b""})
    with pytest.raises(OmniglotError, match=r"omniglot_28x28.zip: omniglot/images/b/c/1.png"):
        read_drawings(tmp_path)
    with pytest.raises(OmniglotError, match="none: no such folder; set METAGUIDE_DATA_DIR"):
        read_drawings(tmp_path / "none")
    assert len(asked) == 2


@pytest.fixture
def served(site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder served in place of the original's site, with a tiny original in it."""
    folder, address = site
    parts = {"background": CHARACTERS, "evaluation": EVALUATION}
    for name, characters in parts.items():
        pack(folder / f"images_{name}.zip", pictures(f"images_{name}", characters, 15))
    for name in ("background_small1", "background_small2"):
        pack(folder / f"images_{name}.zip", pictures(f"images_{name}", CHARACTERS, 15))
    urls = {key: address + url.split("/")[-1] for key, url in omniglot._ORIGINAL_URLS.items()}
    monkeypatch.setattr(omniglot, "_ORIGINAL_URLS", urls)
    return folder


@pytest.fixture
def tiny(trace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TensorFlow Datasets' own builder for five characters; a TensorFlow that leaves a trace."""
    import tensorflow_datasets as tfds

    builder = sys.modules[tfds.builder_cls("omniglot").__module__]
    monkeypatch.setattr(builder, "_NUM_CLASSES", len(CHARACTERS | EVALUATION))
    monkeypatch.setattr(builder, "_NUM_ALPHABETS", 3)
    return trace


def test_tensorflow_datasets_without_tensorflow(tmp_path: Path, served: Path, tiny: Path) -> None:
    """Faults: TensorFlow is needed to download, prepare or read; a second reading downloads again;
    evaluation characters are left out; a name is another character's; paper is ink; a picture is
    shifted or turned when it is made smaller."""
    folder = tmp_path / "tfds"
    with pytest.raises(OmniglotError, match="tfds: no Omniglot; allow the download, or put omni"):
        read_tfds(folder, download=False)
    drawings = read_tfds(folder)
    for path in served.iterdir():
        path.unlink()
    for again in (read_tfds(folder), read_tfds(folder, download=False)):
        assert again.names == drawings.names
        np.testing.assert_array_equal(again.images, drawings.images)
    assert not tiny.exists() and "tensorflow" not in sys.modules

    everyone = CHARACTERS | EVALUATION
    assert drawings.names == tuple(sorted(everyone))
    assert drawings.images.shape == (5, 20, 28, 28) and drawings.images.dtype == np.uint8
    for name, images in zip(drawings.names, drawings.images, strict=True):
        # A cell is 15 pixels wide in the original and 4 here.
        found = {(image[1::4, 1::4] > 127).tobytes() for image in images}
        assert found == {cells(everyone[name], drawing).tobytes() for drawing in range(1, 21)}
        inner = images.reshape(20, 7, 4, 7, 4)[:, :, 1:3, :, 1:3]
        assert ((inner < 40) | (inner > 215)).all()


def test_no_download_is_one_error(
    tmp_path: Path, served: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults: without network, or without the file, the error is another library's, lacks the fix
    or takes minutes."""
    hint = "or put omniglot_28x28.zip into the folder that METAGUIDE_DATA_DIR names"
    (served / "images_evaluation.zip").unlink()
    with pytest.raises(OmniglotError, match=rf"cannot be downloaded or read \(.*404.*{hint}"):
        read_drawings(tmp_path)
    monkeypatch.setattr(omniglot, "_ORIGINAL_URLS", {"train": "http://127.0.0.1:9/a.zip"})
    with pytest.raises(OmniglotError, match=f"no way to 127.0.0.1:9 .*fix the network, {hint}"):
        read_drawings(tmp_path)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**63 - 1))
def test_the_random_split_is_mamls(seed: int) -> None:
    """Faults: a character stands in two parts, or in none; parts of other sizes; another split for
    the same seed."""
    parts = random_split(1623, seed)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 1100,
        "validation": 100,
        "test": 423,
    }
    np.testing.assert_array_equal(np.sort(np.concatenate([*parts.values()])), np.arange(1623))
    again, other = random_split(1623, seed), random_split(1623, seed + 1)
    for name, part in parts.items():
        assert part.dtype == np.int32
        np.testing.assert_array_equal(part, again[name])
        assert (part != other[name]).any() and (np.diff(part) < 0).any()


def test_an_incomplete_omniglot_is_not_split() -> None:
    """Fault: characters that got lost make the test set smaller, and nobody notices."""
    with pytest.raises(OmniglotError, match="1623 characters, and there are 964; get it again"):
        random_split(964, 0)


def test_vinyals_split(tmp_path: Path) -> None:
    """Faults: a class is another character, or turned otherwise than its line says."""
    pack(tmp_path / ARCHIVE, contents())
    names = tuple(sorted(CHARACTERS))
    parts = vinyals_split(tmp_path, names)
    assert list(parts) == ["train", "validation", "test"]
    assert parts["train"].tolist() == [[c, turn] for c in (2, 0) for turn in range(4)]
    assert parts["validation"].shape == (0, 2)
    assert parts["test"].tolist() == [[1, turn] for turn in range(4)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"Greek/character01/rot000\nGreek/character09/rot000\n",
            r"test.txt:2: .*no such character",
        ),
        (
            b"Greek/character01/rot045\n",
            r"test.txt:1: .*rot045': no character/rotDDD; get it again",
        ),
        (b"Greek/character01\n", r"test.txt:1: .*no character/rotDDD"),
        (b"\xff\n", r"test.txt:1: .*no character/rotDDD"),
        (None, r"no omniglot/splits/vinyals/test.txt; get it again"),
    ],
)
def test_a_bad_line_of_the_split_is_named(tmp_path: Path, content, words) -> None:
    """Fault: a class that is not there is left out, or ends in a KeyError."""
    members = {**contents(), SPLIT: content}
    pack(tmp_path / ARCHIVE, {k: v for k, v in members.items() if v is not None})
    with pytest.raises(OmniglotError, match=words) as error:
        vinyals_split(tmp_path, tuple(sorted(CHARACTERS)))
    assert f"{tmp_path / ARCHIVE}: " in str(error.value)


@pytest.mark.parametrize("nothing", [False, True])
def test_vinyals_split_needs_the_archive(tmp_path: Path, nothing: bool) -> None:
    """Fault: whoever reads through TensorFlow Datasets hears of a missing file only."""
    with pytest.raises(OmniglotError, match=r"split of Vinyals .*; put omniglot_28x28.zip into"):
        vinyals_split(None if nothing else tmp_path, ())


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_table_points_at_its_pictures(data: st.DataObject) -> None:
    """Faults: a class of the table shows another character; a character is stored once for each of
    its turns, or though no class shows it; turns are those of another class."""
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] + np.zeros((20, 28, 28), np.uint8)
    drawings = Drawings(tuple("abcdef"), images)
    characters = np.array(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=12)))
    turns = np.array([data.draw(st.integers(0, 3)) for _ in characters])
    for given_turns, expected in ((None, np.full_like(turns, -1)), (turns, turns)):
        made = table(drawings, characters, given_turns)
        assert made["image"].shape == (1, len(set(characters)), 20, 28, 28)
        np.testing.assert_array_equal(made["image"][0, made["character"][0], 3, 4, 5], characters)
        np.testing.assert_array_equal(made["turns"][0], expected)
        types = {name: leaf.dtype for name, leaf in made.items()}
        assert types == {"image": np.uint8, "character": np.int32, "turns": np.int32}


@pytest.fixture(scope="module")
def published() -> Path:
    """The folder with the archive as published, where the person who runs the tests has it."""
    folder = os.environ.get("METAGUIDE_DATA_DIR")
    if not folder or not (Path(folder) / ARCHIVE).exists():
        pytest.skip(f"METAGUIDE_DATA_DIR does not name a folder with {ARCHIVE}")
    return Path(folder)


@pytest.mark.slow
def test_published_archive(published: Path) -> None:
    """Faults: characters lost or doubled in the whole archive; paper taken for ink; a character of
    Vinyals' training is tested on."""
    drawings = read_drawings(published)
    assert drawings.images.shape == (1623, 20, 28, 28) and drawings.images.dtype == np.uint8
    assert len({name.split("/")[0] for name in drawings.names}) == 50
    assert set(np.unique(drawings.images[::97])) == {0, 255}
    share = (drawings.images == 255).mean((2, 3))
    assert abs(share.mean() - 0.0805) < 0.0005 and 0 < share.min() and share.max() < 0.4
    parts = vinyals_split(published, drawings.names)
    assert [len(part) for part in parts.values()] == [4112, 688, 1692]
    for part in parts.values():
        assert len(np.unique(part, axis=0)) == len(part) == 4 * len(set(part[:, 0]))
    both = np.concatenate([np.unique(part[:, 0]) for part in parts.values()])
    np.testing.assert_array_equal(np.sort(both), np.arange(1623))
    made = table(drawings, *parts["train"].T)
    assert made["image"].shape == (1, 1028, 20, 28, 28) and made["turns"].shape == (1, 4112)
