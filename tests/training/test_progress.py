import io

from rich.console import Console

from metaguide.training import progress


def shown(monkeypatch, terminal, seconds):
    """What a bar over three units writes to standard error."""
    file = io.StringIO()

    def console(**arguments):
        assert arguments["stderr"]
        return Console(file=file, force_terminal=terminal, width=80)

    monkeypatch.setattr(progress, "Console", console)
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", seconds)
    monkeypatch.setenv("TERM", "xterm")
    with progress.patience("questions", 3) as tell:
        for done in (1, 2, 3):
            tell(done)
    return file.getvalue()


def test_a_bar_is_drawn_where_it_takes_long_and_there_is_a_terminal(monkeypatch):
    """Faults: a log is filled with bars; a quick call flickers; a long one is silent."""
    assert "questions" in shown(monkeypatch, terminal=True, seconds=-1)
    assert shown(monkeypatch, terminal=True, seconds=60) == ""
    assert shown(monkeypatch, terminal=False, seconds=-1) == ""
