"""What stands in for the network and for TensorFlow where TensorFlow Datasets is read."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder that is served, and the address that it is served at."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there as soon as something has tried to import TensorFlow."""
    trap = tmp_path / "path" / "tensorflow" / "__init__.py"
    trap.parent.mkdir(parents=True)
    trap.write_text("import pathlib\npathlib.Path(__file__).with_name('trace').touch()\n1 / 0\n")
    monkeypatch.syspath_prepend(trap.parents[1])
    return trap.with_name("trace")
