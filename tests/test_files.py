"""Files that are whole or not there."""

import pytest

from metaguide.files import whole


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
