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


def lines(monkeypatch, seconds, start=0):
    """What is said without a terminal over a hundred steps, the first of which end so late."""
    said, now = [], [0.0]
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=io.StringIO(), width=80))
    monkeypatch.setattr(progress, "say", said.append)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    with progress.progress("pretrain", 100, start=start) as tell:
        for number, moment in enumerate(seconds, 1):
            now[0] = moment
            tell(start + number, "loss 1")
    return said


def test_compiling_is_left_out_of_the_time_left(monkeypatch):
    """Fault: after a first step of 87 s, all of which was compiling, 8,675 s are left."""
    said = lines(monkeypatch, (87, 88, 89, 99))
    assert said == [
        "pretrain: step 1 of 100, loss 1",
        "pretrain: step 4 of 100, 384 s left, loss 1",
    ]


def test_time_left_of_a_run_that_goes_on(monkeypatch):
    """Fault: the steps of the run before count as if they had been taken in no time."""
    assert lines(monkeypatch, (20, 22, 31), start=90) == [
        "pretrain: step 91 of 100, loss 1",
        "pretrain: step 93 of 100, 39 s left, loss 1",
    ]


def test_a_bar_leaves_compiling_out_too(monkeypatch):
    """Fault: the bar's time left counts the first step as the others."""
    now, file = [0.0], io.StringIO()
    console = Console(
        file=file, force_terminal=True, width=100, get_time=lambda: now[0], legacy_windows=False
    )
    monkeypatch.setattr(progress, "Console", lambda **_: console)
    monkeypatch.setenv("TERM", "xterm")
    with progress.progress("pretrain", 100) as tell:
        for done, moment in enumerate((87, 88, 89, 90), 1):
            now[0] = moment
            tell(done, "")
    assert "0:01:36" in file.getvalue()
