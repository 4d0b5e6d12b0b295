"""Answers to questions about reviews of shops that no source is, from SubjQA.

python -m experiments.tables.questions --config.encoder.weights=FOLDER \\
    --config.encoder.prefix="query: "

Some domains are held out together, by default books and movies, which have no part for training.
A reader learns from the answers in the others, except for those about the reviews of their part
"dev", on which the threshold is chosen from which on an answer is given. Where a question of the
held-out domain was answered by several people, each answer counts. With labelled questions of the
domain, of its part "dev", the threshold is chosen by these and the sources' together;
`choices.json` in the work folder says how.
Without `--config.encoder.weights` the table has the baselines alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from ml_collections.config_dict import FrozenConfigDict
from scipy.special import logsumexp, softmax

from experiments import runner
from experiments.config_files import ConfigError
from experiments.encoders import read_encoder
from experiments.modules import COMMANDS
from experiments.reports.terminal import print_tables
from experiments.run_folder import claimed, write_results
from experiments.sources.subjqa import read_questions
from experiments.tables.span_reader import (
    Scored,
    reader_of,
    scorer_of,
    train_reader,
    windows_of,
)
from metaguide.data.catalogue import Domain, Question
from metaguide.evaluation import baselines
from metaguide.evaluation.metrics import (
    bootstrap,
    bootstrap_interval,
    half_of_mean,
    mean_interval,
)
from metaguide.evaluation.results import Row, Scores, key, with_baselines
from metaguide.evaluation.rows import ONCE
from metaguide.files import write_json
from metaguide.scoring import answer_scores
from metaguide.tasks.nearest_sentences import Near, cosines, sentence_rows
from metaguide.training.progress import say

TASK, ALL = "questions", "all"
"""Names of the task, and of the domain of rows of all held-out domains."""

BASELINES = ("abstain", "best sentence")
"""Names of the baselines of this table, which learn nothing but IDF of the sources."""

PERSON = "another person"
"""Name of the row that says how far two people who answered agree."""

NEAREST = "nearest sentence"
"""Name of the method that answers with the sentence whose vector is nearest to the question's."""

PRIMARY = "f1_answerable"


class Asked(NamedTuple):
    """Questions, each once, and every answer that was given to them.

    Attributes:
        questions: the questions.
        answered: of each answer, its question with it.
        row: of each answer, the number of its question.
        golds: of each answer, its words; None if the person found none.
    """

    questions: Sequence[Question]
    answered: Sequence[Question]
    row: Int[np.ndarray, " answers"]
    golds: Sequence[str | None]

    @property
    def answerable(self) -> Bool[np.ndarray, " answers"]:
        """Which answers are words."""
        return np.array([gold is not None for gold in self.golds])


def asked_of(domain: Domain, most: int = 0) -> Asked:
    """Return the questions of a domain, with the answers of everyone who was asked the same.

    Args:
        domain: the domain.
        most: how many of them at most, from the first; 0 for all.
    """
    number: dict[tuple[str, str], int] = {}
    questions, answered, row, golds = [], [], [], []
    for one in domain.questions:
        content = one.question, one.text
        if content not in number:
            if most and len(questions) == most:
                continue
            number[content] = len(questions)
            questions.append(one)
        answered.append(one)
        row.append(number[content])
        golds.append(one.golds[0] if one.golds else None)
    return Asked(questions, answered, np.array(row), golds)


def teaching(parts: Mapping[str, Domain]) -> dict[str, Domain]:
    """Return a source's parts without the answers that would teach what its part "dev" asks.

    The published parts share reviews, and nine in ten answers of "dev" have their question in
    "train" too, where somebody else answered it.
    """
    held = {one.text for one in parts["dev"].questions}
    return {
        part: domain
        if part == "dev"
        else replace(domain, questions=tuple(q for q in domain.questions if q.text not in held))
        for part, domain in parts.items()
    }


class Said(NamedTuple):
    """What a method says of each question.

    Attributes:
        answers: the words it would answer with.
        sure: how sure it is that there is an answer, of any scale.
    """

    answers: Sequence[str]
    sure: Float[np.ndarray, " questions"]


# ------------------------------------------------------------------------------ methods


def best_sentences(asked: Asked, near: Near) -> Said:
    """Return the sentence of each text that is nearest to the question; all of a text without."""
    rows = sentence_rows(asked.questions, near)
    answers = [
        one.text[begin:end] or one.text
        for one, begin, end in zip(asked.questions, rows["start"], rows["end"], strict=True)
    ]
    return Said(answers, rows["near"].astype(float))


def near_by_tfidf(sources: Sequence[Asked]) -> Near:
    """Return the cosine of TF-IDF, whose IDF is that of the sources' questions and texts."""
    read = {text for part in sources for one in part.questions for text in (one.question, one.text)}
    tfidf = baselines.fit_tfidf(sorted(read))
    return lambda left, right: np.asarray(
        tfidf.transform(left).multiply(tfidf.transform(right)).sum(axis=1)
    ).ravel()


def likeliest(asked: Asked, said: Sequence[Scored]) -> Said:
    """Return the answers of the highest score."""
    answers = [
        one.text[slice(*of_one.spans[0])] for one, of_one in zip(asked.questions, said, strict=True)
    ]
    return Said(answers, _sure(said))


def consensus(asked: Asked, said: Sequence[Scored]) -> Said:
    """Return the answers a of the largest expected F1, Σ_b p(b) F1(a, b) over the candidates b."""
    answers = []
    for one, of_one in zip(asked.questions, said, strict=True):
        words = [one.text[begin:end] for begin, end in of_one.spans]
        chance = softmax(of_one.scores)
        f1 = np.array([[answer_scores(a, [b])[1] for b in words] for a in words])
        answers.append(words[int((f1 @ chance).argmax())])
    return Said(answers, _sure(said))


DECODED = {"reader": consensus, "reader, likeliest": likeliest}
"""How the answer of a reader is taken from its scores; keyed by the name of the method."""


def _sure(said: Sequence[Scored]) -> Float[np.ndarray, " questions"]:
    """Return the log odds of there being an answer."""
    return np.array([logsumexp(one.scores) - one.none for one in said])


# ------------------------------------------------------------------------------ thresholds


class Worth(NamedTuple):
    """What each answer to a question is worth if it is given, and if it is not.

    Attributes:
        sure: how sure the method is.
        given: the score of the answer.
        withheld: the score of giving none.
    """

    sure: Float[np.ndarray, " answers"]
    given: Float[np.ndarray, " answers"]
    withheld: Float[np.ndarray, " answers"]

    def taken(self, rows: Int[np.ndarray, "*shape"] | Bool[np.ndarray, " answers"]) -> "Worth":
        """Return some of them."""
        return Worth(*(one[rows] for one in self))

    def at(self, threshold: float) -> Float[np.ndarray, " answers"]:
        """Return the scores if an answer is given from a threshold on."""
        return np.where(self.sure >= threshold, self.given, self.withheld)


def worth(asked: Asked, said: Said, metric: int) -> Worth:
    """Return the worth of what a method says.

    Args:
        asked: the questions.
        said: the answers.
        metric: 0 for exact match, 1 for F1.
    """
    given = [
        0.0 if gold is None else answer_scores(said.answers[int(row)], [gold])[metric]
        for row, gold in zip(asked.row.tolist(), asked.golds, strict=True)
    ]
    return Worth(said.sure[asked.row], np.array(given), (~asked.answerable).astype(float))


def threshold_of(parts: Sequence[tuple[float, Worth]]) -> float:
    """Return the threshold of the largest sum of weight times mean score.

    Args:
        parts: weights, and what answers are worth.
    """
    levels = np.unique(np.concatenate([one.sure for _, one in parts]))
    # Between two levels, so that the threshold does not hang on the last bit of a score.
    middles = (levels[1:] + levels[:-1]) / 2
    tried = np.concatenate([[-np.inf], middles, [np.inf]])
    total = np.zeros(len(tried))
    for weight, one in parts:
        order = np.argsort(one.sure, kind="stable")
        gain = np.concatenate([[0.0], np.cumsum((one.withheld - one.given)[order])])
        below = np.searchsorted(one.sure[order], tried, "left")
        total += weight * (one.given.sum() + gain[below]) / len(one.sure)
    return float(tried[int(total.argmax())])


def adapted(sources: Worth, few: Worth, seen: float) -> float:
    """Return a threshold for a domain of which a few questions are known.

    Args:
        sources: the worth of answers in the sources.
        few: that of answers in the domain.
        seen: how many questions the sources count as.
    """
    return threshold_of([(seen, sources), (float(len(few.sure)), few)])


def learn_seen(
    config: FrozenConfigDict, of_sources: Sequence[Worth], rows: Sequence[np.ndarray]
) -> dict[int, float]:
    """Choose how many questions the sources count as, on each source as if it were held out.

    Args:
        config: the resolved config.
        of_sources: of each source, the worth of answers in its part "dev".
        rows: of each source, the question of each answer.

    Returns:
        Number of shots above 0 -> the choice.
    """
    found = {}
    for shots in filter(None, config.shots):
        scores = {float(seen): [] for seen in config.threshold.seen}
        for number, own in enumerate(of_sources):
            others = joined([one for other, one in enumerate(of_sources) if other != number])
            for draw in range(config.threshold.episodes):
                rng = np.random.default_rng((config.seed, number, shots, draw))
                given = drawn(rows[number], shots, rng)
                for seen, means in scores.items():
                    threshold = adapted(others, own.taken(given), seen)
                    means.append(own.taken(~given).at(threshold).mean())
        found[shots] = max(scores, key=lambda seen: float(np.mean(scores[seen])))
    return found


def drawn(
    row: Int[np.ndarray, " answers"], shots: int, rng: np.random.Generator
) -> Bool[np.ndarray, " answers"]:
    """Return which answers are to `shots` questions that are drawn."""
    return np.isin(row, rng.permutation(np.unique(row))[:shots])


def joined(parts: Sequence[Worth]) -> Worth:
    """Return the worth of the answers of several domains as one."""
    return Worth(*(np.concatenate(one) for one in zip(*parts, strict=True)))


# ------------------------------------------------------------------------------ outcomes


class Outcome(NamedTuple):
    """How a method did in one held-out domain.

    Attributes:
        em, f1: what its answers are worth, one for each seed.
        thresholds: number of shots -> the thresholds that were chosen, [seeds, episodes].
    """

    em: Sequence[Worth]
    f1: Sequence[Worth]
    thresholds: Mapping[int, Float[np.ndarray, "seeds episodes"]]


Place = tuple[str, str]
"""A domain and a part of it."""


def answers_of(
    config: FrozenConfigDict, domains: Mapping[str, Mapping[str, Asked]], workdir: Path
) -> dict[str, dict[Place, list[Said]]]:
    """Return what each method says of the parts that are asked, one for each seed.

    Args:
        config: the resolved config.
        domains: name -> part -> its questions.
        workdir: work folder, where readers are trained.
    """
    sources = [parts for name, parts in domains.items() if name not in config.held_out]
    asked = {(name, "dev"): parts["dev"] for name, parts in domains.items()}
    asked |= {(name, "test"): domains[name]["test"] for name in config.held_out}
    taught = [parts[part] for parts in sources for part in ("train", "test") if part in parts]
    by_tfidf = near_by_tfidf(taught)
    found = {"best sentence": {one: [best_sentences(of, by_tfidf)] for one, of in asked.items()}}
    if (pretrained := read_encoder(config.encoder, workdir)) is None:
        say("no config.encoder.weights: the table has the baselines alone")
        return found
    by_vectors = cosines(pretrained.vectors)
    found[NEAREST] = {one: [best_sentences(of, by_vectors)] for one, of in asked.items()}
    say(f"{NEAREST}: answered")
    reader = reader_of(config, pretrained.encoder)
    windows = windows_of(reader, [one for part in taught for one in part.answered])
    scored = scorer_of(config, reader)
    found |= {name: {one: [] for one in asked} for name in DECODED}
    for seed in config.seeds:
        params = train_reader(config, reader, windows, seed, workdir / f"reader{seed}")
        for one, of in asked.items():
            said = scored(params, of.questions)
            for name, decode in DECODED.items():
                found[name][one].append(decode(of, said))
        say(f"reader, seed {seed}: answered")
    return found


def outcome_of(
    config: FrozenConfigDict,
    domains: Mapping[str, Mapping[str, Asked]],
    said: Mapping[Place, list[Said]],
    choices: list[Any],
) -> dict[str, Outcome]:
    """Choose the thresholds of one method, and return its outcome in each held-out domain.

    Args:
        config: the resolved config.
        domains: name -> part -> its questions.
        said: what the method says.
        choices: what was chosen for each seed; is filled.
    """

    def worths(domain: str, part: str, metric: int) -> list[Worth]:
        asked = domains[domain][part]
        return [worth(asked, one, metric) for one in said[domain, part]]

    sources = [name for name in domains if name not in config.held_out]
    dev = list(zip(*[worths(name, "dev", 1) for name in sources], strict=True))
    rows = [domains[name]["dev"].row for name in sources]
    seen = [learn_seen(config, of_seed, rows) for of_seed in dev]
    known = [joined(of_seed) for of_seed in dev]
    unseen = [threshold_of([(1.0, one)]) for one in known]
    for threshold, counts in zip(unseen, seen, strict=True):
        given = threshold if np.isfinite(threshold) else "never" if threshold > 0 else "always"
        choices.append({"answers from": given, "sources count as": counts})
    found = {}
    for number, domain in enumerate(config.held_out):
        of_few, row = worths(domain, "dev", 1), domains[domain]["dev"].row
        thresholds = {0: np.array(unseen)[:, None]}
        for shots in seen[0]:
            given = [
                drawn(row, shots, np.random.default_rng((config.seed, number, shots, draw)))
                for draw in range(config.episodes)
            ]
            thresholds[shots] = np.array(
                [
                    [adapted(of_sources, few.taken(one), counts[shots]) for one in given]
                    for of_sources, few, counts in zip(known, of_few, seen, strict=True)
                ]
            )
        em, f1 = (worths(domain, "test", metric) for metric in (0, 1))
        found[domain] = Outcome(em, f1, {shots: thresholds[shots] for shots in config.shots})
    return found


# ------------------------------------------------------------------------------ scores


class Measured(NamedTuple):
    """A metric of a method in one domain.

    Attributes:
        of_seeds: the values.
        half: half-width of the 95% interval over questions, drawn with all their answers, and over
            the questions that were known.
    """

    of_seeds: Float[np.ndarray, " seeds"]
    half: float


def measured(asked: Asked, outcome: Outcome) -> dict[tuple[str, int | None], Measured]:
    """Return every metric, keyed by its name and number of shots; None where shots do nothing.

    "f1_answerable" and "em_answerable" are of the answers that are words, where the method has to
    answer; "auc" is the chance that it is surer of an answer that is words than of one that is not;
    "f1" and "em" are of all answers, with the threshold, and "gain" is that of F1 over no answer.
    """
    answerable, row = asked.answerable, asked.row
    found: dict[tuple[str, int | None], Measured] = {}
    for name, worths in (("f1_answerable", outcome.f1), ("em_answerable", outcome.em)):
        given = np.stack([one.given[answerable] for one in worths])
        found[name, None] = _over(given[:, None], row[answerable])
    sure = np.stack([one.sure for one in outcome.f1])
    aucs = np.array([auc(one, answerable, np.ones((1, len(row))))[0] for one in sure])
    half = bootstrap(
        lambda weights: np.mean([auc(one, answerable, weights) for one in sure], 0)[:, None], row
    )
    found["auc", None] = Measured(aucs, float(half[0]))
    for shots, thresholds in outcome.thresholds.items():
        scores = {
            name: np.stack(
                [
                    np.stack([one.at(threshold) for threshold in of_seed])
                    for one, of_seed in zip(worths, thresholds, strict=True)
                ]
            )
            for name, worths in (("f1", outcome.f1), ("em", outcome.em))
        }
        scores["gain"] = scores["f1"] - outcome.f1[0].withheld
        found |= {(name, shots): _over(values, row) for name, values in scores.items()}
    return found


def _over(
    values: Float[np.ndarray, "seeds episodes answers"], row: Int[np.ndarray, " answers"]
) -> Measured:
    over_questions = bootstrap_interval(values.mean((0, 1)), row).half or 0.0
    of_episodes = values.mean((0, 2))
    over_episodes = mean_interval(of_episodes).half or 0.0
    return Measured(values.mean((1, 2)), float(np.hypot(over_questions, over_episodes)))


def auc(
    sure: Float[np.ndarray, " answers"],
    answerable: Bool[np.ndarray, " answers"],
    weights: Float[np.ndarray, "draws answers"],
) -> Float[np.ndarray, " draws"]:
    """Return the chance that an answer that is words is surer than one that is not; ties count ½.

    NaN if all or none are words; a NaN of `sure` counts as least sure.
    """
    levels, place = np.unique(np.nan_to_num(sure, nan=-np.inf), return_inverse=True)
    at_level = np.eye(len(levels))[place]
    words, others = (weights * which @ at_level for which in (answerable, ~answerable))
    below = np.cumsum(others, axis=1) - others / 2
    total = words.sum(1) * others.sum(1)
    with np.errstate(invalid="ignore"):
        return (words * below).sum(1) / total


def agreement(asked: Asked) -> Measured | None:
    """Return the F1 of one person's words by another's, where both found some; None if nowhere."""
    of_question: dict[int, list[str]] = {}
    for row, gold in zip(asked.row.tolist(), asked.golds, strict=True):
        if gold is not None:
            of_question.setdefault(row, []).append(gold)
    rows, values = [], []
    for row, golds in of_question.items():
        for number, gold in enumerate(golds):
            others = golds[:number] + golds[number + 1 :]
            if others:
                rows.append(row)
                values.append(np.mean([answer_scores(one, [gold])[1] for one in others]))
    return _over(np.array([[values]]), np.array(rows)) if len(set(rows)) > 1 else None


def rows_of(
    config: FrozenConfigDict,
    domains: Mapping[str, Mapping[str, Asked]],
    outcomes: Mapping[str, Mapping[str, Outcome]],
) -> tuple[list[Row], Scores]:
    """Return the rows of every held-out domain and of all, and the scores of answers by method."""
    rows: list[Row] = []
    scores: Scores = {}
    row = partial(Row, table=config.table, task=TASK)

    def made(metric: str, shots: int | None, method: str, of: Mapping[str, Measured]) -> None:
        every = {**of, ALL: _mean(list(of.values()))} if len(of) == len(config.held_out) else of
        for domain, one in every.items():
            half = mean_interval(one.of_seeds).half if len(one.of_seeds) > 1 else None
            learned = method in DECODED
            rows.append(
                row(
                    method=method,
                    domain=domain,
                    metric=metric,
                    shots=shots,
                    value=float(one.of_seeds.mean()),
                    ci95=one.half,
                    ci95_seeds=half,
                    seeds=len(one.of_seeds) if learned else None,
                    episodes=config.episodes if shots else None,
                )
            )

    tests = {domain: domains[domain]["test"] for domain in config.held_out}
    without = {domain: (~asked.answerable).astype(float) for domain, asked in tests.items()}
    for shots in config.shots:
        for metric in ("f1", "em"):
            nothing = {one: _over(v[None, None], tests[one].row) for one, v in without.items()}
            made(metric, shots, "abstain", nothing)
    people = {domain: agreement(asked) for domain, asked in tests.items()}
    made(PRIMARY, None, PERSON, {domain: one for domain, one in people.items() if one is not None})
    for method, of_domains in outcomes.items():
        found = {domain: measured(tests[domain], one) for domain, one in of_domains.items()}
        for metric, shots in next(iter(found.values())):
            made(metric, shots, method, {d: one[metric, shots] for d, one in found.items()})
        for domain, outcome in of_domains.items():
            answerable = tests[domain].answerable
            (own,) = (
                one
                for one in rows
                if (one.method, one.domain, one.metric) == (method, domain, PRIMARY)
            )
            given = np.mean([one.given[answerable] for one in outcome.f1], 0)
            ids = tests[domain].row[answerable].astype(np.int32)
            of_examples = {"score": given[None].astype(np.float32), "id": ids[None]}
            scores[key(own)] = {**of_examples, **ONCE}
    return with_baselines(rows, BASELINES), scores


def _mean(parts: Sequence[Measured]) -> Measured:
    of_seeds = np.mean([one.of_seeds for one in parts], 0)
    return Measured(of_seeds, half_of_mean([one.half for one in parts]))


def check(config: FrozenConfigDict, domains: Mapping[str, Mapping[str, Asked]]) -> None:
    """Check that the held-out domains exist, that others teach, and that there are shots enough.

    Raises:
        ConfigError: they do not.
    """
    for name in config.held_out:
        if name not in domains:
            raise ConfigError(f"config.held_out names {name!r}; SubjQA has {', '.join(domains)}")
    sources = [name for name in domains if name not in config.held_out]
    if len(sources) < 2:
        raise ConfigError("config.held_out leaves fewer than two domains to learn from")
    for name, parts in domains.items():
        lacking = {"dev", "test"} - set(parts)
        if lacking:
            raise ConfigError(f"subjqa.zip: {name} has no part {min(lacking)!r}; download it again")
        if (most := len(parts["dev"].questions)) <= max(config.shots):
            raise ConfigError(
                f"config.shots is {config.shots}: the part 'dev' of {name} has {most} questions; "
                "give fewer"
            )


def main(config: FrozenConfigDict, workdir: Path) -> None:
    """Read, train, choose, answer and score, then write the table."""
    with claimed(config, workdir):
        domains = {}
        for name, parts in read_questions().items():
            is_source = name not in config.held_out
            asked = {"dev"} if is_source else {"dev", "test"}
            parts = teaching(parts) if is_source and "dev" in parts else parts
            domains[name] = {
                part: asked_of(domain, config.most * (part in asked))
                for part, domain in parts.items()
            }
        check(config, domains)
        choices: dict[str, list[Any]] = {}
        outcomes = {
            method: outcome_of(config, domains, said, choices.setdefault(method, []))
            for method, said in answers_of(config, domains, workdir).items()
        }
        rows, scores = rows_of(config, domains, outcomes)
        path = write_results(config, workdir, rows, scores, config.seeds)
        write_json(workdir / "choices.json", choices)
        for metric in (PRIMARY, "auc", "f1", "gain"):
            print_tables(rows, baselines=BASELINES, metric=metric)
        say(f"questions: {path}, {workdir / 'choices.json'}")


if __name__ == "__main__":
    runner.run(main, **COMMANDS["experiments.tables.questions"]._asdict())
