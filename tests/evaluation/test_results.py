"""Raw outcomes become rows, rows become files, and files rows again."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metaguide.evaluation import metrics
from metaguide.evaluation.results import (
    FIELDS,
    ResultsError,
    Row,
    _checksum,
    cells_to_rows,
    check,
    difference,
    difference_over_seeds,
    key,
    read,
    with_baselines,
    write,
)
from metaguide.tasks import CLASSIFICATION, QUESTIONS, RECOMMENDATION, SENTIMENT

CELL = {"table": "guide", "method": "maml", "domain": "phones", "shots": 5}
HEAD = {"command": "python -m experiments.guide", "config": {"way": 5}, "seeds": [0, 1]}
PLAIN = {**HEAD, "version": 2, "made": "2026"}


def labelled(rng, seeds=2, places=3, episodes=4, queries=6, pool=15):
    """Raw outcomes of a classification cell."""
    ids = np.stack([rng.permutation(pool)[:queries] for _ in range(episodes)])
    target = ids % 3
    predicted = rng.integers(0, 3, (seeds, places, episodes, queries))
    mask = rng.random((episodes, queries)) < 0.8
    return {"predicted": predicted, "target": target, "mask": mask, "id": ids}


def find(rows, metric, steps=None):
    (row,) = [r for r in rows if r.metric == metric and steps in (None, r.steps)]
    return row


def test_values_are_means_over_seeds_of_pooled_metrics():
    """Masked queries counted, steps and seeds swapped, or macro-F1 averaged over episodes."""
    raw = labelled(np.random.default_rng(0))
    rows, _ = cells_to_rows(raw, scoring=CLASSIFICATION.scoring, **CELL)
    assert len(rows) == 6
    for place in range(3):
        chosen = raw["predicted"][:, place][:, raw["mask"]]
        target = raw["target"][raw["mask"]]
        f1 = [metrics.macro_f1(one, target) for one in chosen]
        accuracy = (chosen == target).mean(axis=1)
        assert find(rows, "macro_f1", place).value == pytest.approx(np.mean(f1))
        row = find(rows, "accuracy", place)
        assert row.value == pytest.approx(accuracy.mean())
        assert row.ci95_seeds == pytest.approx(metrics.mean_interval(accuracy).half)
        assert row.ci95 is not None and row.ci95 > 0
        assert (row.episodes, row.seeds) == (4, 2)


def test_padding_never_moves_a_number():
    """What stands in masked places leaking into a value, an interval or a score."""
    raw = labelled(np.random.default_rng(1))
    other = dict(raw, predicted=np.where(raw["mask"], raw["predicted"], 99))
    one, scores = cells_to_rows(raw, scoring=SENTIMENT.scoring, **CELL)
    two, _ = cells_to_rows(other, scoring=SENTIMENT.scoring, **CELL)
    assert one == two
    cell = scores[key(find(one, "accuracy", 2))]
    assert (cell["id"] == np.where(raw["mask"], raw["id"], -1)).all()
    assert (np.isnan(cell["score"]) == ~raw["mask"]).all()


def test_zero_shots_count_an_example_once():
    """An example that recurs over zero-shot episodes weighted by its luck; but in classification
    it meets other classes each time, and all count."""
    ids = np.array([[0, 1], [1, 2]])
    raw = {
        "predicted": np.array([[[[1, 1], [1, 1]]]]),
        "target": np.array([[0, 1], [1, 1]]),
        "mask": np.ones((2, 2), bool),
        "id": ids,
    }
    zero = dict(CELL, shots=0)
    rows, scores = cells_to_rows(raw, scoring=SENTIMENT.scoring, **zero)
    assert find(rows, "accuracy").value == pytest.approx(2 / 3)
    assert sorted(scores[key(rows[0])]["id"].ravel()) == [-1, 0, 1, 2]
    rows, _ = cells_to_rows(raw, scoring=CLASSIFICATION.scoring, **zero)
    assert find(rows, "accuracy").value == pytest.approx(3 / 4)


def test_a_users_queries_all_count_at_zero_shots():
    """All queries of a user but one dropped, since they share the user's id."""
    raw = {"rank": np.array([[[[1, 20], [1, 20], [3, 3]]]]), "mask": np.ones((3, 2), bool)}
    raw["id"] = np.array([[7, 7], [7, 7], [8, 8]])
    rows, _ = cells_to_rows(raw, scoring=RECOMMENDATION.scoring, **dict(CELL, shots=0))
    assert find(rows, "hr@10").value == pytest.approx(3 / 4)
    assert find(rows, "mrr").value == pytest.approx((1 + 1 / 20 + 2 / 3) / 4)


def test_answerable_and_unanswerable_apart():
    """A split metric over all questions, or a NaN row where a part is empty."""
    raw = {
        "em": np.array([[[[1.0, 0.0, 1.0, 0.0]]]]),
        "f1": np.array([[[[1.0, 0.5, 1.0, 0.0]]]]),
        "answerable": np.array([[True, True, False, False]]),
        "mask": np.ones((1, 4), bool),
        "id": np.arange(4)[None],
    }
    rows, scores = cells_to_rows(raw, scoring=QUESTIONS.scoring, **CELL)
    values = {row.metric: row.value for row in rows}
    assert values == {
        "em": 0.5,
        "f1": 0.625,
        "em_answerable": 0.5,
        "f1_answerable": 0.75,
        "accuracy_unanswerable": 0.5,
    }
    kept = scores[key(find(rows, "f1_answerable"))]["id"]
    assert kept.tolist() == [[0, 1, -1, -1]]
    raw["answerable"] = np.ones((1, 4), bool)
    rows, _ = cells_to_rows(raw, scoring=QUESTIONS.scoring, **CELL)
    assert "accuracy_unanswerable" not in {row.metric for row in rows}


def test_raw_scores_that_cannot_be_right_are_refused():
    """Seeds scored on different episodes, a missing array, a wrong axis order, an empty cell."""
    raw = labelled(np.random.default_rng(2))
    ids = np.broadcast_to(raw["id"], (2, 3, 4, 6)).copy()
    ids[1] += 1
    for broken, message in (
        (dict(raw, id=ids), "differs between seeds"),
        ({"mask": raw["mask"], "id": raw["id"]}, "lack predicted"),
        (dict(raw, predicted=raw["target"]), "not \\[seeds"),
        (dict(raw, mask=np.zeros((4, 6), bool)), "all queries are masked"),
        (dict(raw, target=raw["target"][:, :2]), "'target' has shape"),
    ):
        with pytest.raises(ResultsError, match=message):
            cells_to_rows(broken, scoring=CLASSIFICATION.scoring, **CELL)


def test_differences_come_from_the_stored_scores():
    """Methods compared over different examples or seeds, and a paired difference of macro-F1, or
    over seeds, of the wrong sign or size."""
    raw = labelled(np.random.default_rng(3))
    right = dict(raw, predicted=np.broadcast_to(raw["target"], raw["predicted"].shape))
    rows, scores = cells_to_rows(raw, scoring=CLASSIFICATION.scoring, keep="all", **CELL)
    better, best = cells_to_rows(right, scoring=CLASSIFICATION.scoring, keep="all", **CELL)
    for metric in ("accuracy", "macro_f1"):
        one, other = find(better, metric, 1), find(rows, metric, 1)
        value, half = difference(best[key(one)], scores[key(other)])
        assert value == pytest.approx(one.value - other.value, abs=1e-6)
        assert half is not None and 0 < half < value
        # All is right in every seed, so the difference moves as the other method alone does.
        over_seeds = difference_over_seeds(best[key(one)], scores[key(other)])
        assert over_seeds.value == pytest.approx(value, abs=1e-6)
        assert over_seeds.half == pytest.approx(other.ci95_seeds)
    with pytest.raises(ResultsError, match="have 2 and 3 seeds"):
        difference_over_seeds(scores[key(other)], {"by_seed": np.zeros(3)})
    moved = dict(scores[key(other)], id=scores[key(other)]["id"] + 1)
    with pytest.raises(ResultsError, match="same examples"):
        difference(best[key(one)], moved)


def test_a_difference_without_shots_is_over_examples_as_its_rows_are(tmp_path):
    """Faults: three episodes, which differ in nothing without shots, are drawn as if there were no
    others, and the interval of a difference is many times that of its rows; the mark is lost on
    disk."""
    rng = np.random.default_rng(5)
    raw = labelled(rng, places=1, episodes=3, queries=30, pool=60)
    other = dict(raw, predicted=rng.integers(0, 3, raw["predicted"].shape))
    cell = {**CELL, "shots": 0, "scoring": SENTIMENT.scoring}
    named = {"a": raw, "b": other}
    found = [cells_to_rows(one, **{**cell, "method": name}) for name, one in named.items()]
    rows, scores = found[0][0] + found[1][0], {**found[0][1], **found[1][1]}
    write(rows, scores, tmp_path, **HEAD)
    ours, theirs = (find(rows, "accuracy") for rows, _ in found)
    stored = read(tmp_path).scores
    half = difference(stored[key(ours)], stored[key(theirs)]).half
    assert half is not None
    assert half == pytest.approx(np.hypot(ours.ci95, theirs.ci95), rel=0.25)


def test_files_give_back_what_was_written(tmp_path):
    """A field, an absent value, a score or an id lost on disk; other names than the issue's."""
    raw = labelled(np.random.default_rng(4))
    rows, scores = cells_to_rows(raw, scoring=CLASSIFICATION.scoring, **dict(CELL, domain="热水器"))
    path = write(rows, scores, tmp_path, **HEAD)
    assert path.name == "results.json"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["episodes.npz", "results.json"]
    found = read(tmp_path)
    assert found.rows == tuple(rows) and found.seeds == (0, 1) and found.config == {"way": 5}
    assert set(found.scores) == set(scores)
    for cell, arrays in scores.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(found.scores[cell][name], array)
    plain = json.loads(path.read_text("utf-8"))
    assert set(plain) == {*PLAIN, "crc32", "rows"}
    assert list(plain["rows"][0]) == list(FIELDS)
    assert plain["rows"][0]["published"] is None
    other = write(rows, scores, tmp_path, name="omniglot", **HEAD)
    assert read(other).scores.keys() == scores.keys()


def test_a_failed_write_leaves_what_was_there(tmp_path):
    """A half-written file, a temporary one left behind, or the old results gone."""
    rows, scores = cells_to_rows(
        labelled(np.random.default_rng(5)), scoring=CLASSIFICATION.scoring, **CELL
    )
    path = write(rows, scores, tmp_path, **HEAD)
    before = path.read_bytes()
    with pytest.raises(ResultsError, match="config of results"):
        write(rows, scores, tmp_path, **dict(HEAD, config={"a": object()}))
    with pytest.raises(ResultsError, match="two rows are both guide/maml"):
        write([*rows, rows[0]], scores, tmp_path, **HEAD)
    with pytest.raises(ResultsError, match="belong to no row"):
        write(rows[:1], scores, tmp_path, **HEAD)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["episodes.npz", "results.json"]


def test_rows_are_checked():
    """NaN in a table, a count that is a float, a name that breaks the keys of the scores."""
    row = Row(table="t", method="a", task="mse", metric="mse", value=0.5)
    assert row.shots is None
    for wrong, message in (
        ({"value": float("nan")}, "not a finite number"),
        ({"value": None}, "not a finite number"),
        ({"shots": 1.0}, "'shots'"),
        ({"method": "a/b"}, "'method'"),
        ({"ci95": -0.1}, "negative"),
        ({"vale": 1.0}, "unknown or missing: vale"),
    ):
        with pytest.raises(ResultsError, match=message):
            check(asdict(row) | wrong)
    with pytest.raises(ResultsError, match="negative"):
        replace(row, ci95=-0.1)


def test_broken_files_are_named(tmp_path):
    """A traceback from the json module where the file and row should be named."""
    with pytest.raises(ResultsError, match="no results"):
        read(tmp_path)
    path = tmp_path / "results.json"
    path.write_text("{")
    with pytest.raises(ResultsError, match="results.json: not JSON"):
        read(tmp_path)
    path.write_text(json.dumps(dict(PLAIN, rows=[{"table": "t"}])))
    with pytest.raises(ResultsError, match="row 0: unknown or missing: .*method"):
        read(tmp_path)


def test_baselines_stand_beside_the_methods_of_their_cell():
    """A baseline of another cell, or the worst baseline, beside a method."""

    def row(method, shots, value, metric="m"):
        return Row(table="t", method=method, task="x", metric=metric, shots=shots, value=value)

    rows = [row("maml", 1, 0.9), row("majority", 1, 0.5), row("tf-idf", 1, 0.6)]
    rows += [row("maml", 5, 0.9), row("majority", 5, 0.4)]
    found = [r.baseline for r in with_baselines(rows, {"majority", "tf-idf"})]
    assert found == [0.6, None, None, 0.4, None]
    rows = [
        row("maml", 1, 0.1, "mse"),
        row("majority", 1, 0.5, "mse"),
        row("tf-idf", 1, 0.6, "mse"),
    ]
    assert with_baselines(rows, {"majority", "tf-idf"})[0].baseline == 0.5


def test_episodes_that_diverged_are_counted_and_older_files_have_no_count(tmp_path):
    """Faults: a method that diverged in some episodes looks like one that did not; a masked query
    counts; a file from before it was counted cannot be read."""
    shape = (2, 1, 5, 3)
    finite = np.ones(shape, bool)
    finite[0, 0, 1, 2] = finite[0, 0, 1, 0] = finite[1, 0, 4, 0] = finite[1, 0, 3, 2] = False
    mask = np.ones(shape[2:], bool)
    mask[3, 2] = False
    raw = {
        "rank": np.ones(shape, int),
        "mask": mask,
        "id": np.arange(15).reshape(5, 3),
        "finite": finite,
    }
    rows, scores = cells_to_rows(
        raw, table="t", method="a", domain="d", scoring=RECOMMENDATION.scoring, shots=5
    )
    assert {row.diverged for row in rows} == {2}
    path = write(rows, scores, tmp_path, command="c", config={}, seeds=[0, 1])
    assert read(path).rows == tuple(rows)
    found = json.loads(path.read_text())
    del found["crc32"]
    for row in found["rows"]:
        del row["diverged"]
    path.write_text(json.dumps(found))
    assert {row.diverged for row in read(path).rows} == {None}


def test_a_score_that_was_changed_is_noticed(tmp_path):
    """Faults: the checksum covers the names of the arrays alone; results that are copied without
    their scores, or were written with the older checksum, are refused; scores of results that were
    overwritten are taken for those of the new ones."""
    rows, scores = cells_to_rows(
        labelled(np.random.default_rng(6)), scoring=CLASSIFICATION.scoring, **CELL
    )
    path, beside = write(rows, scores, tmp_path, **HEAD), tmp_path / "episodes.npz"
    with np.load(beside) as arrays:
        flat = {name: arrays[name] for name in arrays.files if "/" in name}
    name = next(name for name in flat if name.endswith("/score"))
    for changed in (
        np.nan_to_num(flat[name]) + 1e-3,
        flat[name].astype(np.float64),
        flat[name][:, ::-1],
    ):
        np.savez(beside, **{**flat, name: changed})
        with pytest.raises(ResultsError, match="episodes.npz: it is not of the results beside it"):
            read(path)
    np.savez(beside, **dict(reversed(flat.items())))
    assert set(read(path).scores) == set(scores)
    found = json.loads(path.read_text())
    assert set(found["crc32"]) == {"rows", "arrays"}
    del found["crc32"]["arrays"]
    for sums in ({"scores": _checksum(sorted(flat))}, {}):
        path.write_text(json.dumps({**found, "crc32": {**found["crc32"], **sums}}))
        assert set(read(path).scores) == set(scores)
    found["crc32"]["scores"] = 1
    path.write_text(json.dumps(found))
    with pytest.raises(ResultsError, match="it is not of the results beside it"):
        read(path)
    beside.unlink()
    assert read(path).scores == {} and read(path).rows == tuple(rows)
    write(rows, scores, tmp_path, **HEAD)
    write(rows, {}, tmp_path, **HEAD)
    assert not beside.exists() and read(path).scores == {}


METHOD = {
    "task": "sentiment",
    "method": "maml",
    "learning_rate": 0.1,
    "tuned_by": {"metric": "accuracy", "score": 0.75},
    "diverged": 0.0,
    "seconds": None,
}


def test_methods_and_names_of_classes_are_read_back(tmp_path):
    """Faults: what validation chose is gone when the run ends, a file from before it was recorded
    is refused, or one that was changed is taken for what was written."""
    zero = METHOD | {
        "method": "zero-shot",
        "learning_rate": None,
        "seconds": 0.02,
        "training_seconds": 3,
    }
    classes = {"phones": ["cases", "电池"]}
    path = write([], {}, tmp_path, tunings=[METHOD, zero], classes=classes, **HEAD)
    found = read(path)
    assert found.tunings == (METHOD, zero) and found.classes == classes
    text = path.read_text("utf-8")
    for old, new, message in (
        (
            '"learning_rate": 0.1',
            '"learning_rate": 0.3',
            "its tunings are not those that were written",
        ),
        ("电池", "cables", "its classes are not those that were written"),
        ('"tunings"', '"method"', "the fields are not"),
    ):
        path.write_text(text.replace(old, new), "utf-8")
        with pytest.raises(ResultsError, match=message):
            read(path)
    without = {name: field for name, field in json.loads(text).items() if name != "tunings"}
    path.write_text(json.dumps(without), "utf-8")
    with pytest.raises(ResultsError, match="its tunings are not those that were written"):
        read(path)
    before = {name: field for name, field in without.items() if name not in ("classes", "crc32")}
    path.write_text(json.dumps(before), "utf-8")
    assert read(path).tunings == () and read(path).classes == {}
    assert "tunings" not in write([], {}, tmp_path, **HEAD).read_text("utf-8")


def test_files_of_version_1_are_read_on_and_later_ones_refused(tmp_path):
    """Faults: what was published before the fields were renamed cannot be read; a file of a later
    version is read as if it said the same."""
    row = Row(table="t", method="a", task="x", metric="m", value=0.5, baseline=0.25)
    path = write([row], {}, tmp_path, tunings=[METHOD], **HEAD)
    now, written = read(path), json.loads(path.read_text("utf-8"))
    names = {"method": "arm", "baseline": "floor", "learning_rate": "rate"}

    def earlier(entry):
        return {names.get(name, name): value for name, value in entry.items()}

    head = {name: written[name] for name in ("command", "config", "seeds", "made")}
    before = {
        **head,
        "rows": [earlier(row) for row in written["rows"]],
        "methods": [earlier(one) for one in written["tunings"]],
    }
    path.write_text(json.dumps(before), "utf-8")
    assert read(path) == now
    path.write_text(json.dumps({**written, "version": 3}), "utf-8")
    with pytest.raises(ResultsError, match="version 3, and this metaguide reads 1 to 2; update"):
        read(path)


@pytest.mark.parametrize(
    "broken, message",
    [
        ({"learning_rate": float("nan")}, "tuning 0: field 'learning_rate' is nan"),
        ({"learning_rate": 10**400}, "field 'learning_rate'"),
        ({"seconds": -1.0}, "field 'seconds' is -1.0"),
        ({"seconds": True}, "field 'seconds' is True"),
        ({"diverged": 1.5}, "field 'diverged'"),
        ({"tuned_by": {"metric": "accuracy"}}, "field 'tuned_by'"),
        ({"tuned_by": {"metric": "accuracy", "score": float("inf")}}, "field 'tuned_by'"),
        ({"method": ""}, "field 'method'"),
        ({"training_seconds": None}, "field 'training_seconds'"),
        ({"cost": 1}, "unknown or missing: cost"),
    ],
)
def test_methods_that_cannot_be_right_are_named(tmp_path, broken, message):
    """Fault: a broken method is a traceback in the report, or stands there as a number."""
    with pytest.raises(ResultsError, match=message):
        write([], {}, tmp_path, tunings=[METHOD | broken], **HEAD)
    assert not list(tmp_path.iterdir())
    written = {**PLAIN, "rows": [], "tunings": [METHOD | broken]}
    (tmp_path / "results.json").write_text(json.dumps(written), "utf-8")
    with pytest.raises(ResultsError, match=f"results.json: .*{message}.*write it anew"):
        read(tmp_path)


def test_methods_and_classes_of_another_kind_are_named(tmp_path):
    """Fault: a list where a dict should be is a traceback."""
    for optional, message in (
        ({"tunings": {}}, "field 'tunings' is {}, not a list"),
        ({"tunings": [3]}, "tuning 0: 3 has no fields"),
        ({"tunings": [METHOD, METHOD]}, "two tunings are both of maml on sentiment"),
        ({"classes": []}, "field 'classes' is \\[\\], not lists"),
        ({"classes": {"phones": ["a", 1]}}, "field 'classes'"),
    ):
        written = {**PLAIN, "rows": [], **optional}
        (tmp_path / "results.json").write_text(json.dumps(written), "utf-8")
        with pytest.raises(ResultsError, match=message):
            read(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@pytest.mark.slow
@given(
    tunings=JSON | st.lists(st.fixed_dictionaries({name: JSON for name in METHOD}), max_size=2),
    classes=JSON | st.dictionaries(st.text(max_size=3), st.lists(JSON, max_size=2)),
)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_as_methods_or_classes_is_read_or_named(tmp_path, tunings, classes):
    """Fault: a value of another kind is a traceback."""
    written = {**PLAIN, "rows": [], "tunings": tunings, "classes": classes}
    (tmp_path / "results.json").write_text(json.dumps(written), "utf-8")
    try:
        found = read(tmp_path)
    except ResultsError as error:
        assert "results.json: " in str(error) and "write it anew" in str(error)
    else:
        assert isinstance(tunings, list) and list(found.tunings) == tunings
        assert all(isinstance(names, list) for names in found.classes.values())
