"""Recommendation: predict which product of the domain's catalogue a user takes next."""

import reprlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Key

from metaguide.data.catalogue import Domain, Product
from metaguide.data.encoding import Table, product_rows, stack, stack_rows
from metaguide.data.episodes import check_users, crowd_sampler, user_sampler, user_support
from metaguide.data.histories import History, each_once, histories
from metaguide.data.texts import product_text
from metaguide.evaluation import baselines, metrics
from metaguide.evaluation.rows import Measures, ResultsError, Scoring
from metaguide.models.encoder import SKETCH, Encoding
from metaguide.models.guide import GuideModel
from metaguide.models.heads import RecommendationHead
from metaguide.objectives.tasks import ranking_loss
from metaguide.tasks.problem import encode_examples, problem_of, use_head
from metaguide.tasks.serving import Adapted, Fill, HeldBack, Reading, Server, Serving
from metaguide.tasks.task import Outcome, Shape, Task
from metaguide.tasks.widths import in_few_widths
from metaguide.ties import drawn
from metaguide.training.program import SIZES, in_pieces, padded_size
from metaguide.training.progress import patience
from metaguide.types import (
    OUT,
    AdaptedPredictFn,
    Batch,
    Learner,
    Metrics,
    Params,
    Problem,
    TaskDistribution,
)

NAME = "recommendation"

CUTS = (5, 10, 50)
"""k of HR@k and NDCG@k."""

HISTORY_SIZES = (16, 64, 256, 1024)
"""Lengths to which histories are padded, in products."""

LONGEST_HISTORY = HISTORY_SIZES[-1]
"""Number of a history's last products that are read: older ones have no weight left."""

USERS_HELD_BACK, SCORES_HELD_BACK = 1000, 2**21
"""The most users, and the most scores of users times products, that a weight is chosen on."""

MOST_SHOTS = 20
"""The shots for which a choice of weights has memory."""

USERS = (1, *SIZES)
"""Numbers of users that are ranked for at once: each more may cost as much as the first."""

FLOATS_AT_ONCE = 2**26
"""Numbers that a ranking holds in memory at a time: 256 MiB."""


@dataclass(frozen=True, eq=False, repr=False)
class Ranking:
    """The domain's products for one user, best first, without those the user already has.

    Attributes:
        user: the user's name.
        scores: float32 scores of `products`, in descending order; only the order of one user's
            scores is meaningful.
        by: "history" if the ranking is based on what the user took, "no history" if the user took
            nothing. The latter ranking is the same for all such users: what is popular in this
            domain, and what users in general took on the training domains, if there were any.
        catalogue: ids of all products of the domain.
        rows: rows of `products` in the catalogue.
    """

    user: str
    scores: np.ndarray
    by: str
    catalogue: tuple[str, ...]
    rows: np.ndarray

    @property
    def products(self) -> tuple[str, ...]:
        """Ids, best first; made on request, since 10,000 rankings of 10,000 fill the memory."""
        return tuple(self.catalogue[row] for row in self.rows)

    def __eq__(self, other: object) -> bool:
        """Compare user, products, scores and `by`."""
        if not isinstance(other, Ranking):
            return NotImplemented
        return (self.user, self.by, self.products) == (other.user, other.by, other.products) and (
            np.array_equal(self.scores, other.scores)
        )

    def __repr__(self) -> str:
        """Show the first three products."""
        first = ", ".join(self.catalogue[row] for row in self.rows[:3])
        more = ", …" if len(self.rows) > 3 else ""
        return f"<Ranking of {len(self.rows)} for {self.user!r} by {self.by}: {first}{more}>"


def recommendation(model: GuideModel) -> Problem:
    """Build next-product prediction: every product scored for a user, as `RecommendationHead` says.

    The catalogue is encoded once per episode (once for all users of a domain, if it depends only on
    the domain's products), or not at all if the context holds its `vectors`. The user's side is the
    head. Products are known by their texts alone: what pictures show for classification, the kind
    of product, drowns the words that tell a user's taste.
    """

    def encode(
        params: Params, batch: Batch, context: Any, key: Key[Array, ""] | None
    ) -> dict[str, Any]:
        if "vectors" in context:
            products = {name: context[name] for name in ("vectors", "lexical") if name in context}
        else:
            products = product_encoding(encode_examples(model, params, context["products"], key))
        return {"products": products, "history": products["vectors"][batch["history"]]}

    def predict(params: Params, encoded: Any, batch: Batch, context: Any) -> dict[str, Array]:
        # When many users adapt on encoded products, each has their own parameters, and the two
        # ways to compute the same scores differ in cost.
        alone = "vectors" in context
        head = partial(use_head, model, params, NAME)
        products, known = encoded["products"], batch["history_mask"]
        users = jax.vmap(partial(head, "user"))(encoded["history"], known)
        if alone:
            scores = head("scores", users, products["vectors"])
        else:
            seen = head("products", products["vectors"])
            scores = users @ seen.T / jnp.sqrt(jnp.asarray(users.shape[-1], users.dtype))
        rows = jnp.arange(len(scores))[:, None]
        if "lexical" in products:
            weights = jax.vmap(partial(head, "recencies"))(known)
            sketches = products["lexical"]
            if alone:
                of_users = jnp.einsum("ri,ris->rs", weights, sketches[batch["history"]])
            else:
                of_products = jnp.zeros_like(scores).at[rows, batch["history"]].add(weights)
                of_users = of_products @ sketches
            scores += of_users @ sketches.T
        scores += head("priors", batch["popularity"])
        # Products that a user already has are not recommended, and give no negative examples.
        taken = jnp.zeros(scores.shape, bool)
        taken = taken.at[rows, batch["history"]].max(batch["history_mask"])
        scores = jnp.where(taken, jnp.asarray(OUT, scores.dtype), scores)
        return {"scores": scores, "candidates": context["candidates"] & ~taken}

    def loss(params: Params, encoded: Any, batch: Batch, context: Any) -> tuple[Array, Metrics]:
        out = predict(params, encoded, batch, context)
        return ranking_loss(out["scores"], batch["item"], batch["mask"], context["candidates"])

    return problem_of(model, NAME, encode, loss, predict, score_ranks)


def product_encoding(encoding: Encoding) -> dict[str, Array]:
    """Return what a ranking reads of encoded products: "vectors", and "lexical" if there is one."""
    lexical = {} if encoding.lexical is None else {"lexical": encoding.lexical}
    return {"vectors": encoding.vector, **lexical}


def score_ranks(outputs: Mapping[str, Array], query: Batch, context: Any) -> dict[str, Array]:
    """Return the `rank` (from 1) of the product taken, and `finite`.

    A product tied with t others gets one of the t + 1 ranks at random. If a candidate's score is
    not finite, the product taken gets the last rank, or rank 2 if it is the only candidate, since
    nothing was ranked first.
    """
    del context
    scores, candidates, item = outputs["scores"], outputs["candidates"], query["item"][:, None]
    target = jnp.take_along_axis(scores, item, axis=1)
    others = candidates & (jnp.arange(scores.shape[1]) != item)
    above, level = (others & (scores > target)).sum(-1), (others & (scores == target)).sum(-1)
    finite = (jnp.isfinite(scores) | ~candidates).all(-1) & jnp.isfinite(target[:, 0])
    place = above + drawn(query["id"] + 7919 * query["item"], level + 1)
    rank = 1 + jnp.where(finite, place, jnp.maximum(others.sum(-1), 1))
    return {"rank": rank, "finite": finite, "mask": query["mask"], "id": query["id"]}


def recommendation_table(domains: Sequence[Domain], reading: Reading) -> Table:
    """Return the table of users: what they took, in chronological order, and all products.

    A user's history is that of `metaguide.data.histories`. Users with fewer than two products
    are left out: there is nothing to predict for them.

    Returns:
        {"products": rows [domains, products, ...], "catalogue": int32 [domains], "items": int32
        [domains, users, longest], "taken": int32 [domains, users], "users": int32 [domains],
        "popularity": int32 [domains, products]}. Popularity counts the users who took a product
        before their last one: the last is what episodes ask for.
    """
    products, items, taken, popularity = [], [], [], []
    for domain in domains:
        index = {product.id: row for row, product in enumerate(domain.products)}
        every = histories(domain.interactions)
        kept = [[index[p] for p in user.products] for user in every if len(user.products) > 1]
        longest = max(map(len, kept), default=0)
        padded = [history + [0] * (longest - len(history)) for history in kept]
        items.append(np.array(padded, np.int32).reshape(len(kept), longest))
        taken.append(np.array([len(history) for history in kept], np.int32))
        popularity.append(times_taken((history[:-1] for history in kept), len(domain.products)))
        products.append(_product_rows(domain.products, reading))
    return {
        "products": stack_rows(products),
        "catalogue": np.array([len(domain.products) for domain in domains], np.int32),
        "items": stack(items),
        "taken": stack(taken),
        "users": np.array([len(counts) for counts in taken], np.int32),
        "popularity": stack(popularity),
    }


def times_taken(
    histories: Iterable[Sequence[int]], products: int
) -> Int32[np.ndarray, " products"]:
    """Return how many of these histories contain each product; rows that repeat count once."""
    counts = np.zeros(products, np.int32)
    for history in histories:
        counts[list(set(history))] += 1
    return counts


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The products of a domain, encoded on the first request.

    Attributes:
        server: the server whose parameters encode the products.
        domain: the domain, whose products are ranked.
        known: the context, if it is known, as in a saved guide.
    """

    server: Server
    domain: Domain
    known: Mapping[str, Array] | None = None

    @property
    def products(self) -> Sequence[Product]:
        """The domain's products."""
        return self.domain.products

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Ids of the products."""
        return tuple(product.id for product in self.products)

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """Row of each product, keyed by id."""
        return {one: row for row, one in enumerate(self.ids)}

    @cached_property
    def context(self) -> Mapping[str, Array]:
        """The context of a ranking: what `product_encoding` returns, popularity and candidates."""
        if self.known is not None:
            return self.known
        model, reading, serving, programs = self.server
        program = programs.setdefault("catalogue", jax.jit(partial(_encode_products, model)))
        pieces = []
        with patience("encoding the products", len(self.products)) as tell:
            for start in range(0, len(self.products), SIZES[-1]):
                products = self.products[start : start + SIZES[-1]]
                rows = in_few_widths(_product_rows(products, reading))
                pieces.append(in_pieces(partial(program, serving.meta["params"]), rows))
                tell(start + len(products))
        taken = [
            [self.rows[p] for p in one.products] for one in histories(self.domain.interactions)
        ]
        return jax.device_put(
            {
                **{name: np.concatenate([one[name] for one in pieces]) for name in pieces[0]},
                "popularity": times_taken(taken, len(self.products)),
                "candidates": np.ones(len(self.products), bool),
            }
        )


def _encode_products(model: GuideModel, params: Params, rows: Table) -> dict[str, Array]:
    return product_encoding(encode_examples(model, params, rows, None))


def _product_rows(products: Sequence[Product], reading: Reading) -> Table:
    return product_rows(products, reading.reader, reading.lengths.text, images=False)


def _episodes(
    model: GuideModel,
    domains: Sequence[Domain],
    reading: Reading,
    shape: Shape,
    always: Mapping[str, Sequence[str]],
    scored: bool,
) -> TaskDistribution:
    del always, scored
    names, table = tuple(one.name for one in domains), recommendation_table(domains, reading)
    check_users(table, names)
    if shape.users > 1:
        sample = crowd_sampler(shape.users, shape.candidates)
    else:
        sample = user_sampler(shape.shots, shape.candidates)
    return TaskDistribution(names, table, sample, recommendation(model))


def _adapt(
    server: Server,
    domain: Domain,
    shots: int,
    rng: np.random.Generator,
    picked: Sequence[Any] | None,
    unlabelled: int | Sequence[Any],
) -> tuple[Adapted | None, tuple[str, ...]]:
    """Defer adaptation: users adapt on request, and the first request encodes the catalogue."""
    del rng, picked, unlabelled
    if not domain.products:
        return None, ("there are no products to rank; add them",)
    return Adapted(_learner(server, shots), server.serving.meta, Catalogue(server, domain)), ()


def _restore(
    server: Server,
    domain: Domain,
    shots: int,
    support: Sequence[Any],
    unlabelled: Sequence[Any],
    fill: Fill,
) -> Adapted:
    """Restore a catalogue whose products are encoded already."""
    del support, unlabelled
    count, params = len(domain.products), server.serving.meta["params"]
    rows = _product_rows(domain.products[:1], server.blank)
    one = jax.eval_shape(partial(_encode_products, server.model), params, rows)
    like = {
        **{name: jax.ShapeDtypeStruct((count, *a.shape[1:]), a.dtype) for name, a in one.items()},
        "popularity": jax.ShapeDtypeStruct((count,), jnp.int32),
        "candidates": jax.ShapeDtypeStruct((count,), jnp.bool_),
    }
    catalogue = Catalogue(server, domain, fill(like))
    return Adapted(_learner(server, shots), server.serving.meta, catalogue)


def _learner(server: Server, shots: int) -> Learner:
    ranker = partial(_ranker, shots)
    return server.learner((NAME, shots), lambda: recommendation(server.model), shots > 0, ranker)


def _ranker(shots: int, learner: Learner) -> AdaptedPredictFn:
    """Return (meta, users, context) -> {"scores"}, which adapts to each user and then predicts."""

    def rank(meta: Params, users: Batch, context: Any) -> dict[str, Array]:
        def one(user: Batch) -> Array:
            history, taken = user["history"], user["taken"]
            support = user_support(history, taken, max(1, shots), shots)
            known = jnp.arange(len(history)) < taken
            # A user's own products say nothing of what others take; they may or may not be counted.
            popularity = context["popularity"]
            mine = jnp.zeros(len(popularity), jnp.int32).at[history].max(known.astype(jnp.int32))
            others = jnp.maximum(popularity - mine, 0)[None]
            support["popularity"] = jnp.broadcast_to(others, (max(1, shots), len(popularity)))
            state, _ = learner.adapt(meta, support, context, None)
            query = {"history": history[None], "history_mask": known[None], "popularity": others}
            return learner.predict(state, query, context)["scores"][0]

        return {"scores": jax.vmap(one)(users)}

    return rank


def _predict(
    server: Server,
    adapted: Adapted,
    batch: Sequence[History],
    domain: Domain,
    shots: int,
    top: int | None,
) -> list[Ranking]:
    """Rank the domain's products for users, adapting to each one's last `shots` products."""
    catalogue: Catalogue = adapted.context
    del domain
    taken = [[catalogue.rows[product] for product in each_once(one.products)] for one in batch]
    ask = partial(adapted.learner.predict, adapted.state)
    rankings = []
    scores = _scores(server, ask, catalogue.context, taken, shots)
    for one, mine, score in zip(batch, taken, scores, strict=True):
        if not np.isfinite(score).all():
            raise ValueError(
                f"the scores of user {one.user!r} are not finite: adaptation diverged; adapt "
                "with shots=0, or serve another method"
            )
        free = np.ones(len(score), bool)
        free[mine] = False
        order = _best(score, np.flatnonzero(free), top)
        by = "history" if mine else "no history"
        rankings.append(Ranking(one.user, score[order], by, catalogue.ids, order))
    return rankings


def _scores(
    server: Server,
    ask: Callable[[Batch, Any], Mapping[str, Array]],
    context: Any,
    taken: Sequence[Sequence[int]],
    shots: int,
) -> Iterator[Float[np.ndarray, " products"]]:
    """Yield the scores of all products for each user.

    Args:
        server: the server.
        ask: (users, context) -> scores, as of `_ranker`.
        context: of the catalogue.
        taken: rows of the products that each user took, in the order of time.
        shots: as of `_predict`.
    """
    read = [rows[-LONGEST_HISTORY:] for rows in taken]
    length = padded_size(max(map(len, read)), HISTORY_SIZES)
    users: dict[str, np.ndarray] = {
        "history": np.array([[*rows, *[0] * (length - len(rows))] for rows in read], np.int32),
        "taken": np.array([len(rows) for rows in read], np.int32),
    }
    most = _users_at_once(server, shots, len(context["candidates"]), length)
    for start in range(0, len(taken), most):
        some = {name: leaf[start : start + most] for name, leaf in users.items()}
        yield from in_pieces(lambda rows: ask(rows, context), some, most, USERS)["scores"]


def validate(server: Server, domain: Domain, adapted: Adapted) -> HeldBack:
    """Predict each user's last product from those before it; as in `Task.validate`.

    The products are the classes. Popularity does not count what is held back. Of many users some
    are drawn.
    """
    catalogue: Catalogue = adapted.context
    every = [
        [catalogue.rows[product] for product in one.products]
        for one in histories(domain.interactions)
        if len(one.products) > 1
    ]
    popularity = times_taken((rows[:-1] for rows in every), len(catalogue.ids))
    most = min(USERS_HELD_BACK, 1 + SCORES_HELD_BACK // len(catalogue.ids))
    drawn = np.random.default_rng(0).permutation(len(every))[:most]
    taken = [every[row] for row in drawn]
    context = {**catalogue.context, "popularity": jnp.asarray(popularity)}
    ask = partial(adapted.learner.predict, server.serving.meta)
    before = [rows[:-1] for rows in taken]
    scores = list(_scores(server, ask, context, before, MOST_SHOTS)) if taken else []
    logits = np.array(scores, np.float32).reshape(len(taken), len(catalogue.ids))
    labels = np.array([rows[-1] for rows in taken], np.int32)
    return HeldBack(logits, labels, np.ones(len(taken), bool))


def with_popularity(serving: Serving, weight: float) -> Serving:
    """Return a serving whose head has another weight of popularity, w of `RecommendationHead`."""
    params = serving.meta["params"]
    head = {**params[NAME], "popularity": jnp.asarray(weight, jnp.float32)}
    return serving._replace(meta={**serving.meta, "params": {**params, NAME: head}})


def untrained(head: Params) -> Params:
    """Return a recommendation head for use without training: likeness alone tells products apart.

    Users without a history are given the popular products, since likeness says nothing of them.

    Args:
        head: an initialised head.
    """
    nothing = {name: jax.tree.map(jnp.zeros_like, head[name]) for name in ("start", "out")}
    return {**head, **nothing, "popularity": jnp.asarray(1e-6, jnp.float32)}


def _best(score: np.ndarray, rows: np.ndarray, top: int | None) -> Int32[np.ndarray, " best"]:
    """Return the rows of the highest scores, best first and ties in their order; all by default."""
    if top is not None and top < len(rows):
        found = score[rows]
        rows = rows[found >= np.partition(found, -top)[-top]]
    return rows[np.argsort(-score[rows], kind="stable")][:top].astype(np.int32)


def _check(adapted: Adapted, batch: Sequence[History], domain: Domain) -> None:
    catalogue: Catalogue = adapted.context
    for one in batch:
        for product in one.products:
            if product not in catalogue.rows:
                raise ValueError(
                    f"user {one.user!r} took product {product!r}, which domain {domain.name} does "
                    "not have; add it to the products"
                )
    long = [one.user for one in batch if len(one.products) > LONGEST_HISTORY]
    if long:
        warnings.warn(
            f"{len(long)} histories, such as that of user {long[0]!r}, have more than "
            f"{LONGEST_HISTORY} products; the last {LONGEST_HISTORY} are read",
            stacklevel=3,
        )


def _checked(where: str, history: History) -> History:
    products = history.products
    if isinstance(products, str | bytes | Mapping) or not isinstance(products, Iterable):
        raise ValueError(f"{where}: products is {reprlib.repr(products)}; give a tuple of ids")
    products = tuple(products)
    for one in (history.user, *products):
        if not isinstance(one, str):
            raise ValueError(f"{where}: {reprlib.repr(one)} is not a text; give ids as texts")
    return History(history.user, products)


def _users_at_once(server: Server, shots: int, products: int, length: int) -> int:
    """Return how many users fit into the memory that a call may use."""
    head = sum(leaf.size for leaf in jax.tree.leaves(server.serving.meta["params"][NAME]))
    # The scores of all products for each shot, the user's own products, and the intermediates of
    # their gradient; the sketches of the user's own have one. A learned optimizer remembers some 80
    # numbers per parameter.
    rows = max(1, shots) + 1
    floats = 8 * rows * (products + length * server.model.width)
    floats += 2 * rows * length * SKETCH * bool(server.model.encoder.buckets)
    floats += head * (200 if server.serving.rule else 8)
    return max(1, min(SIZES[-1], FLOATS_AT_ONCE // floats))


def _measures(flat: Mapping[str, np.ndarray]) -> Measures:
    ranks = flat["rank"].astype(np.int64)
    if ranks.min() < 1:
        raise ResultsError(f"rank {ranks.min()}: the best rank is 1")
    everything = np.ones(ranks.shape[-1], bool)
    # Among few candidates, even the last rank would count as a hit of a failed ranking.
    ranked = flat["finite"].astype(bool) if "finite" in flat else True
    hits = {f"hr@{k}": metrics.hit_rate(ranks, k) for k in CUTS}
    gains = {f"ndcg@{k}": metrics.ndcg(ranks, k) for k in CUTS}
    measures = hits | gains | {"mrr": metrics.reciprocal_rank(ranks)}
    return {name: (np.where(ranked, score, 0.0), everything) for name, score in measures.items()}


def _baselines(
    sources: Sequence[Domain],
    domain: Domain,
    reading: Reading,
    always: Mapping[str, Sequence[str]],
    cells: Mapping[int, Any],
) -> Iterator[Outcome]:
    del reading, always
    tfidf = baselines.fit_tfidf([product_text(p) for one in sources for p in one.products])
    features = tfidf.transform([product_text(product) for product in domain.products])
    index = {product.id: row for row, product in enumerate(domain.products)}
    # Numbered as in the table: the users with two products or more come first.
    every = sorted(histories(domain.interactions), key=lambda user: len(user.products) < 2)
    taken = np.array(
        [(number, index[p]) for number, user in enumerate(every) for p in user.products]
    )
    for shots, cell in cells.items():
        batch = cell["query"]
        query, users = batch["item"], batch["id"][:, 0]
        history, known = batch["history"][:, 0], batch["history_mask"][:, 0]
        support = np.where(known, history, -1)
        candidates = np.ones((len(query), len(domain.products)), bool)
        for row, given in zip(candidates, support, strict=True):
            row[given[given >= 0]] = False
        popular = baselines.popularity(taken, query, users, candidates)
        yield "popularity", shots, popular
        if shots:
            yield "content", shots, baselines.content(features, support, query, users, candidates)


RECOMMENDATION = Task(
    name=NAME,
    title="Recommendation",
    summary="Which product of the catalogue a user takes next.",
    part="interactions",
    asks=History,
    has_examples=lambda domain: bool(domain.interactions),
    columns=("rank", "product", "score"),
    cells=lambda ranking: [
        (rank, product, float(score))
        for rank, (product, score) in enumerate(
            zip(ranking.products, ranking.scores, strict=True), 1
        )
    ],
    counts=lambda domain: Counter(
        "users of one product" if len(history.products) == 1 else "users of several products"
        for history in histories(domain.interactions)
    ),
    head=lambda encoder, way: RecommendationHead(encoder.width, dtype=encoder.dtype),
    episodes=_episodes,
    scoring=Scoring(
        NAME,
        arrays=("rank",),
        measures=_measures,
        metrics=("ndcg@10", "hr@10", "mrr"),
        once="user",
    ),
    baselines=_baselines,
    adapt=_adapt,
    arrays=lambda adapted: adapted.context.context,
    restore=_restore,
    predict=_predict,
    validate=validate,
    checked=_checked,
    picked=None,
    check=_check,
    size=lambda history: len(history.products),
    is_ranking=True,
)
