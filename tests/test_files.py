"""Files that are whole or not there."""

import numpy as np
import pytest

from metaguide.files import (
    MIB,
    OF,
    FileFault,
    read_arrays,
    read_json,
    whole,
    write_arrays,
    write_json,
)


def test_a_file_is_whole_or_as_it_was(tmp_path):
    """Faults: half of it is there after an error, the one before is lost, a part is left behind."""
    path = tmp_path / "a.txt"
    for before in (None, b"old"):
        with pytest.raises(ZeroDivisionError):
            with whole(path) as file:
                file.write(b"new")
                assert not path.exists() or path.read_bytes() == before
                raise ZeroDivisionError
        assert (path.read_bytes() if path.exists() else None) == before
        path.write_bytes(b"old")
    with whole(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_arrays_are_those_that_were_written_or_an_error(tmp_path):
    """Faults: a name, a value, a shape or a lost array goes unnoticed; a file of another cell is
    taken for this one's; a file from before there were checksums is not read."""
    path, arrays = tmp_path / "a" / "cell.npz", {"x": np.arange(6.0), "n": np.ones(2, bool)}
    write_arrays(path, arrays, of="5w1s/maml")
    for of in (None, "5w1s/maml"):
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
