"""Files that are whole or not there, and the tools for those that are not trusted."""

import io
import zipfile

import numpy as np
import pytest

from metaguide.files import (
    MIB,
    OF,
    FileFault,
    atomic_write,
    checksum,
    is_left_by_system,
    read_arrays,
    read_json,
    write_arrays,
    write_json,
    zip_members,
)


def test_a_file_is_whole_or_as_it_was(tmp_path):
    """Faults: half of it is there after an error, the one before is lost, a part is left behind."""
    path = tmp_path / "a.txt"
    for before in (None, b"old"):
        with pytest.raises(ZeroDivisionError):
            with atomic_write(path) as file:
                file.write(b"new")
                assert not path.exists() or path.read_bytes() == before
                raise ZeroDivisionError
        assert (path.read_bytes() if path.exists() else None) == before
        path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_arrays_are_those_that_were_written_or_an_error(tmp_path):
    """Faults: a name, a value, a shape or a lost array goes unnoticed; a file of another cell is
    taken for this one's; a file from before there were checksums is not read."""
    path, arrays = tmp_path / "a" / "cell.npz", {"x": np.arange(6.0), "n": np.ones(2, bool)}
    write_arrays(path, arrays, of="5w1s/maml")
    for of in ((), "5w1s/maml", ("another name", "5w1s/maml")):
        found = read_arrays(path, MIB, of)
        assert found.keys() == arrays.keys()
        for name, leaf in arrays.items():
            np.testing.assert_array_equal(found[name], leaf, strict=True)
    with pytest.raises(FileFault, match="it is of 5w1s/maml, and not of 5w1s/anil"):
        read_arrays(path, MIB, "5w1s/anil")
    with np.load(path) as archive:
        whole_ = dict(archive)
    for change in (
        {"x": whole_["x"] + 1e-12},
        {"y": whole_["x"]},
        {OF: np.array("5w1s/anil")},
        {"x": None},
    ):
        changed = {name: leaf for name, leaf in {**whole_, **change}.items() if leaf is not None}
        np.savez(path, **changed)
        with pytest.raises(FileFault, match="not those that were written"):
            read_arrays(path, MIB, "5w1s/anil")
    np.savez(path, **arrays)
    assert read_arrays(path, MIB, "5w1s/maml").keys() == arrays.keys()


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "7", "[" * 100_000, '{"a": "\xff'])
def test_json_that_is_no_object_is_one_error(tmp_path, content):
    """Fault: what an editor left, or half a file, is a traceback."""
    path = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError):
        read_json(path)
    path.write_text(content, "latin-1")
    with pytest.raises(FileFault, match="not JSON|no JSON object"):
        read_json(path)
    write_json(path, {"a": "é"})
    assert read_json(path) == {"a": "é"}


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("__MACOSX/a/._b.csv", True),
        ("__MACOSX", True),
        ("a/._b.csv", True),
        ("._b.csv", True),
        ("a/.DS_Store", True),
        ("Thumbs.db", True),
        ("b.csv", False),
        ("a/_b.csv", False),
        ("MACOSX/b.csv", False),
        ("a/.b.csv", False),
        ("", False),
    ],
)
def test_what_a_system_leaves_in_a_folder(name, left):
    """Fault: a file of the user's own is passed over, or one of the system's is read."""
    assert is_left_by_system(name) == left


def packed(*members, way=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", way) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def test_members_of_a_zip_are_those_a_user_put_there():
    """Faults: a folder or a file of macOS is a member; a name that stands there twice is read as
    one; the sum of the members has no bound; what is not asked for is unpacked."""
    content = packed(("a/", ""), ("a/b.csv", "x"), ("__MACOSX/a/._b.csv", "y"), ("c", "zz"))
    members = zip_members(content, 10)
    assert {name: read() for name, read in members.items()} == {"a/b.csv": b"x", "c": b"zz"}
    with pytest.raises(FileFault, match="holds more than"):
        zip_members(packed(("a", bytes(600)), ("b", bytes(600))), 1000)
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = packed(("a", "x"), ("a", "y"))
    with pytest.raises(FileFault, match="two members 'a'"):
        zip_members(twice, 10)
    with pytest.raises(FileFault, match="no zip"):
        zip_members(b"text", 10)
    whole_ = packed(("a", "x" * 50), way=zipfile.ZIP_STORED)
    with pytest.raises(FileFault, match="cannot be unpacked"):
        zip_members(whole_.replace(b"x" * 50, b"x" * 49 + b"y"), 100)["a"]()


def test_a_checksum_covers_all_of_an_array():
    """Faults: a value, a type, a shape or a name may change; the order of the names counts."""
    arrays = {"a": np.arange(6, dtype=np.int32), "b": np.zeros((2, 3))}
    known = checksum(arrays)
    assert checksum(dict(reversed(arrays.items()))) == known
    for changed in (
        {**arrays, "a": arrays["a"] + 1},
        {**arrays, "a": arrays["a"].view(np.uint32)},
        {**arrays, "a": arrays["a"].reshape(2, 3)},
        {**arrays, "b": -arrays["b"]},
        {"a": arrays["a"], "c": arrays["b"]},
        {"a": arrays["a"]},
    ):
        assert checksum(changed) != known
    assert checksum({"a": np.ones((4, 4))[::2]}) == checksum({"a": np.ones((2, 4))})
    assert checksum({**arrays, "a": arrays["a"].reshape(2, 3)}, layout=False) == checksum(
        arrays, layout=False
    )
