"""The evaluations that a comparison of methods stands on."""

import weakref
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections.config_dict import FrozenConfigDict

from experiments import domain_split
from experiments.bench import Bench, benches, compared
from experiments.comparison import (
    GRIDS,
    Choice,
    _choose,
    _tuning,
    check_served,
    class_names,
    compare,
    methods_in,
)
from experiments.config_files import ConfigError
from experiments.configs import guide_bazaar
from experiments.outcomes import digest, kept
from experiments.stages import random_start
from metaguide.evaluation.evaluate import Evaluator
from metaguide.methods import ALL_BY_SGD, NOTHING, adaptation_of
from metaguide.optimizers import rnn


@pytest.fixture(scope="module")
def shop(shop_config):
    """A config of one task, and its split."""
    config, folder = shop_config
    config.adapt.update({"episodes": 2, "validation_episodes": 1, "steps": 1, "shots": (0, 1)})
    return config, domain_split.prepare(FrozenConfigDict(config), folder / "run")


def with_methods(config, *methods):
    """The config with these methods, on the task that there is."""
    own = config.copy_and_resolve_references()
    own.adapt.methods = dict.fromkeys(methods, ("classification",))
    return FrozenConfigDict(own)


@pytest.mark.slow
def test_methods_are_scored_on_the_same_episodes_each_with_its_own_optimizer(shop, tmp_path):
    """Faults: without shots only the adaptations are laid out that need shots; a method
    with a learned optimizer is scored on examples of its own, another optimizer than its own adapts
    it, or the outcome of another one is taken for its own; a method that holds the parameters of
    multi-task training has a row without shots."""
    config, split = shop
    frozen, together, rule = with_methods(config, "rnn"), random_start(split, 0), rnn(2, 1)
    theta = rule.init(jax.random.key(0))
    still = {**together, "rule": {**theta, "output": jnp.zeros_like(theta["output"])}}
    wild = {**together, "rule": {**theta, "output": 100 + theta["output"]}}
    bench_of = benches(frozen, split, compared(split), ("rnn",), tmp_path, {"rnn": rule})
    bench, adaptation = bench_of["classification"], adaptation_of("rnn")
    bench.compile(together)
    as_it_is = bench(still, NOTHING, "c", 0, "test", {})
    assert as_it_is["predicted"].shape == (1, 2, 2)
    held, moved = (bench(meta, adaptation, "c", 1, "test", {}) for meta in (still, wild))
    for name, expected in as_it_is.items():
        np.testing.assert_array_equal(held[name], expected.repeat(2, axis=0))
    np.testing.assert_array_equal(moved["id"], held["id"])
    assert (moved["predicted"][0] != moved["predicted"][1]).any()
    comparison = compare(frozen, split, {"rnn": [still]}, bench_of)
    of_rnn = [row for row in comparison.rows if row.method == "rnn"]
    assert {(row.shots, row.steps) for row in of_rnn} == {(1, 0), (1, 1)}
    (method,) = comparison.tunings
    assert method["method"] == "rnn" and method["learning_rate"] in frozen.adapt.rule_factors
    assert method["seconds"] and 0 < method["seconds"] < 60
    assert bench.seconds([together], adaptation) is None  # nothing was computed from these


def test_recommendation_is_scored_on_as_many_users_as_the_config_says(tmp_path, write_shop):
    """Faults: an episode of one user counts as much as one of many queries, so that the rows of
    recommendation are noise; other tasks pay for the users; queries are those of training."""
    config = write_shop(tmp_path, bought=3)
    config.episodes.queries = 1
    config.adapt.update({"episodes": 2, "validation_episodes": 1, "users": 3, "queries": 2})
    frozen = FrozenConfigDict(config)
    split = domain_split.prepare(frozen, tmp_path / "run")
    distributions = compared(split, queries=frozen.adapt.queries)
    bench_of = benches(frozen, split, distributions, ("ridge",), tmp_path, {})
    for task, validation, test in (("classification", 1, 2), ("recommendation", 3, 6)):
        keys = bench_of[task]._keys
        assert (len(keys["validation"]), len(keys["test"])) == (validation, test)
    one = distributions["classification"]
    data = jax.tree.map(jnp.asarray, one.data)
    sampled = jax.eval_shape(partial(one.sample, data, 0, 1, jax.random.key(0)))
    assert sampled.query["mask"].shape == (2,)


def test_an_outcome_is_judged_once_whatever_happens_to_its_file(tmp_path, capsys):
    """Faults: a finished comparison is scored anew; a damaged file, or that of another outcome put
    in its place, is an error or another result; what an outcome depends on is not in its name."""
    adaptations = (NOTHING, ALL_BY_SGD)
    outcome = {
        adaptation: {"rank": np.full((1, 2, 3), n), "id": np.arange(3)}
        for n, adaptation in enumerate(adaptations)
    }
    scored = []

    def again(path):
        found, seconds = kept(path, adaptations, lambda: scored.append(path) or outcome)
        assert seconds >= 0
        jax.tree.map(np.testing.assert_array_equal, dict(found), outcome)
        return len(scored)

    one, other = tmp_path / "kept" / "one.npz", tmp_path / "kept" / "other.npz"
    assert again(one) == again(one) == 1
    assert again(other) == 2
    for number, damage in enumerate(
        (
            lambda content: content[: len(content) // 2],
            lambda content: b"",
            lambda content: b"text",
            lambda content: content.replace(b"rank", b"tank"),
            lambda content: other.read_bytes(),
        )
    ):
        one.write_bytes(damage(one.read_bytes()))
        assert again(one) == again(one) == 3 + number
    assert capsys.readouterr().out.count("one.npz: scored again (") == 5
    names = {
        digest("a", {"w": np.ones(2)}),
        digest("a", {"w": np.ones((1, 2))}),
        digest("a", {"v": np.ones(2)}),
        digest("b", {"w": np.ones(2)}),
        digest("a", {"w": np.ones(2, np.float32)}),
        digest("a", {"w": np.array([1.0, np.nextafter(1, 2)])}),
    }
    assert len(names) == 6 and digest("a", {"w": jnp.ones(2)}) in names


class Meta(dict):
    """Meta-parameters that can be asked whether they are still there."""


def test_an_outcome_is_of_its_own_parameters_though_others_had_their_place(shop, tmp_path):
    """Fault: parameters of a guide that is gone had the same address, and their outcome is taken
    for that of a new guide."""
    config, split = shop
    zero_shot = with_methods(config, "zero-shot")
    bench = benches(zero_shot, split, compared(split), ("zero-shot",), tmp_path)["classification"]
    (together,) = bench._evaluators
    bench._evaluators[together] = Evaluator(
        lambda meta, data: None,
        lambda meta, *_: {one: {"rank": np.array([meta["params"]["w"]])} for one in together},
    )
    known = []
    for number in range(3):
        meta = Meta(params={"w": float(number)})
        known.append(weakref.ref(meta))
        found = bench(meta, NOTHING, bench.held_out[0], 0, "test", {})
        assert found["rank"] == [number]
    del meta
    assert all(one() is not None for one in known)  # so that no other has its address


def test_a_way_that_a_kind_of_task_does_not_have_is_an_error(shop, tmp_path):
    """Fault: a probe on questions, which have no classes, is a traceback after all training."""
    config, split = shop
    distribution = split.task_distributions("unseen")["classification"]
    distribution = distribution._replace(problem=distribution.problem._replace(way=None))
    with pytest.raises(
        ConfigError, match="config.adapt.methods.ridge, classification: .*way is None"
    ):
        Bench(
            with_methods(config, "ridge"),
            split,
            "classification",
            distribution,
            ("ridge",),
            {},
            tmp_path,
        )


def test_a_rate_that_diverges_is_not_chosen():
    """Fault: what is not finite scores as a good outcome, and validation prefers its rate."""
    rates = {"learning_rates": (0.1, 1.0), "adam_learning_rates": (0.1, 1.0)}
    config = FrozenConfigDict({"adapt": {"shots": (5,), **dict.fromkeys(GRIDS, (1.0,)), **rates}})

    class Outcomes:
        task, validation, diverging = "recommendation", ("books",), 0.0

        def __call__(self, meta, adaptation, domain, shots, split, rates):
            lost = rates[adaptation] == self.diverging
            rank, finite = np.full((2, 4, 3), 1 if lost else 5), np.ones((2, 4, 3), bool)
            finite[-1, 0, 0] = not lost
            return {"rank": rank, "finite": finite, "mask": np.ones((2, 4, 3), bool)}

    bench = Outcomes()
    for diverging, wanted in ((1.0, 0.1), (0.1, 1.0)):
        bench.diverging = diverging
        choice = _choose(config, "head-only", bench, [{}])
        assert (choice.learning_rate, choice.diverged) == (wanted, 0)


@pytest.mark.parametrize(
    ("shots", "wanted"), [((0, 5), 0.1), ((0, 1, 5), 1.0), ((0, 1), 1.0), ((0,), 10.0)]
)
def test_a_rate_is_chosen_by_all_numbers_of_shots_that_it_serves(shots, wanted):
    """Faults: one number of shots chooses for the others, and a rate that is slightly better at
    five and far worse at one serves both; without shots, where nothing adapts, a rate counts."""
    rates = {"learning_rates": (0.1, 1.0, 10.0)}
    config = FrozenConfigDict({"adapt": {"shots": shots, **dict.fromkeys(GRIDS, (1.0,)), **rates}})
    ranks = {0: {0.1: 3, 1.0: 3, 10.0: 1}, 1: {0.1: 90, 1.0: 2, 10.0: 90}, 5: {0.1: 1, 1.0: 2}}

    class Outcomes:
        task, validation = "recommendation", ("books",)

        def __call__(self, meta, adaptation, domain, shots, split, rates):
            rank = np.full((2, 4, 3), ranks[shots].get(rates[adaptation], 90))
            known = np.ones((2, 4, 3), bool)
            return {"rank": rank, "finite": known, "mask": known}

    assert _choose(config, "head-only", Outcomes(), [{}]).learning_rate == wanted


def test_what_validation_chose_is_told_and_1_is_no_rate_where_nothing_is_tuned():
    """Faults: the rate and the cost of a method are gone when its run ends; zero-shot, which has no
    rate, is listed with the rate 1; an outcome kept from before has a time."""
    config = FrozenConfigDict({"adapt": {"learning_rates": (0.1,), "penalties": (1.0,)}})

    class Timed:
        task = "questions"

        def seconds(self, metas, adaptation):
            return 0.25 if adaptation.adapts == "all" else None

    tuned = _tuning(config, Timed(), Choice("fine-tuning", 0.1, 0.5, 0.25), [{}])
    assert tuned == {
        "task": "questions",
        "method": "fine-tuning",
        "learning_rate": 0.1,
        "tuned_by": {"metric": "f1", "score": 0.5},
        "diverged": 0.25,
        "seconds": 0.25,
    }
    fixed = _tuning(config, Timed(), Choice("zero-shot", 1.0, 0.5), [{}])
    assert fixed["learning_rate"] is None and fixed["seconds"] is None


def test_names_of_classes_are_in_the_order_of_their_numbers(shop):
    """Fault: a confusion is told with the name of another class."""
    config, split = shop
    assert class_names(split) == {"c": ["c kind 0", "c kind 1", "c kind 2"]}
    table = split.task_distributions("unseen")["classification"].data
    tokens = split.reading.tokenizer.encode(class_names(split)["c"], config.text.name).tokens
    names = np.asarray(table["names"]["tokens"])[1, :3]
    np.testing.assert_array_equal(names, tokens[:, : names.shape[1]])
    assert not tokens[:, names.shape[1] :].any()


@pytest.mark.parametrize("field", GRIDS)
@pytest.mark.parametrize(
    "grid", ["abc", ("abc",), (), 0.1, (0.1, -1.0), (float("nan"),), (float("inf"),), (True,), (0,)]
)
def test_a_grid_that_is_not_of_positive_numbers_is_refused_at_once(field, grid):
    """Fault: `adapt.learning_rates=abc` is accepted, and fails after the stages have trained."""
    fields = guide_bazaar.get_config().to_dict()
    methods_in(FrozenConfigDict(fields))
    fields["adapt"][field] = grid
    with pytest.raises(ConfigError, match=rf"config\.adapt\.{field}=.*: give .* positive number"):
        methods_in(FrozenConfigDict(fields))


def test_a_task_that_no_method_serves_is_refused_at_once():
    """Fault: `StopIteration` after all stages have trained, where no method is used for a task, or
    those alone that start from nothing."""
    fields = guide_bazaar.get_config().to_dict()
    for method, tasks in fields["adapt"]["methods"].items():
        fields["adapt"]["methods"][method] = tuple(task for task in tasks if task != "sentiment")
    fields["adapt"]["methods"]["scratch"] = ("sentiment",)
    config = FrozenConfigDict(fields)
    methods = methods_in(config)
    check_served(config, methods, ("classification", "questions"))
    with pytest.raises(ConfigError, match="no method that a guide can serve is used for sentiment"):
        check_served(config, methods, ("questions", "sentiment"))
