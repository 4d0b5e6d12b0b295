"""Episode samplers: pure functions of (table, domain, shots, key), compiled into the step.

Every sampler draws the largest support of the run first and masks it down to `shots`, so that the
supports of 1, 5 and 10 shots are nested and the queries are the same for all of them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, UInt8

from metaguide.types import Episode, SampleFn, TaskDistribution

Table = Mapping[str, Any]


class EpisodeError(ValueError):
    """A domain cannot give the requested episodes; the message names it and the fix."""


def episode_key(seed: int, split: str, index: int | Int[Array, ""]) -> Key[Array, ""]:
    """Return the key of one episode, a pure function of (seed, split, index).

    Args:
        seed: seed of the run's evaluation.
        split: "train", "validation" or "test".
        index: number of the episode.

    Returns:
        A typed PRNG key.
    """
    number = {"train": 0, "validation": 1, "test": 2}[split]
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), index)


def labelled_sampler(way: int, shots: int, queries: int, ordered: bool = False) -> SampleFn:
    """Return a sampler of N-way K-shot episodes from a labelled table.

    The support is balanced over the classes; the query is drawn from all other examples of the
    same classes, and so follows the domain's own prior.

    Args:
        way: number of classes per episode.
        shots: the largest number of shots per class; 0 gives episodes without support.
        queries: number of query examples per episode; padded and masked if a domain has fewer.
        ordered: whether to keep the order of the classes (sentiment) instead of shuffling them.

    Returns:
        (table, domain, shots, key) -> Episode, of a table of
        `metaguide.data.encoding.labelled_table` that passes `check_labelled`. The support's leading
        axis is shots × way, with the shots outermost; batches hold the table's rows, `label` (the
        slot), `mask` and `id` (the row). The context holds `classes` (int32 [way]) and, if known,
        `names`, `has_names`, `known_names` and `unseen` (bool, the classes that every episode
        contains). It raises the errors of `check_draw`.
    """

    def sample(
        table: Table, domain: ArrayLike, shots_now: ArrayLike, key: Key[Array, ""]
    ) -> Episode:
        check_draw(domain, shots_now, len(table["count"]), shots)
        class_key, order_key, support_key, query_key = jax.random.split(key, 4)
        count = table["count"][domain]
        chance = jax.random.gumbel(class_key, count.shape)
        if "priority" in table:
            chance = jnp.where(table["priority"][domain], jnp.inf, chance)
        chance = jnp.where(count > shots, chance, -jnp.inf)
        classes = jax.lax.top_k(chance, way)[1].astype(jnp.int32)
        classes = jnp.sort(classes) if ordered else jax.random.permutation(order_key, classes)

        members = table["members"][domain, classes]
        there = jnp.arange(members.shape[1]) < count[classes, None]
        chance = jnp.where(there, jax.random.gumbel(support_key, members.shape), -jnp.inf)
        place = jax.lax.top_k(chance, shots)[1]
        slots = jnp.arange(way, dtype=jnp.int32)
        taken = jnp.zeros(members.shape, bool).at[slots[:, None], place].set(True)
        support = _batch(
            table,
            domain,
            jnp.take_along_axis(members, place, axis=1).T.reshape(-1),
            jnp.tile(slots, shots),
            jnp.repeat(jnp.arange(shots) < shots_now, way),
        )

        chance = jnp.where(there & ~taken, jax.random.gumbel(query_key, members.shape), -jnp.inf)
        best, place = jax.lax.top_k(chance.reshape(-1), min(queries, members.size))
        # A distribution may have fewer examples in total than the requested queries.
        lacking = (0, queries - len(place))
        place = jnp.pad(place, lacking)
        query = _batch(
            table,
            domain,
            members.reshape(-1)[place],
            (place // members.shape[1]).astype(jnp.int32),
            jnp.pad(best > -jnp.inf, lacking),
        )
        context: dict[str, Any] = {"classes": classes}
        if "priority" in table:
            context["unseen"] = table["priority"][domain, classes]
        if "names" in table:
            context["names"] = {
                name: leaf[domain, classes] for name, leaf in table["names"].items()
            }
            for field in ("has_names", "known_names"):
                context[field] = table[field][domain, classes]
        return Episode(support, query, context)

    return sample


def balanced_sampler(way: int, shots: int, queries: int) -> SampleFn:
    """Return a sampler of N-way K-shot episodes of pictures, with balanced support and query.

    A class is a character rotated by quarter turns. Every class has the same number of drawings,
    and within an episode all drawings of a class are rotated by the same angle.

    Args:
        way: number of classes per episode.
        shots: the largest number of shots per class; 0 gives episodes without support.
        queries: number of queries per class.

    Returns:
        (table, domain, shots, key) -> Episode. The table holds `image` (uint8 [domains, characters,
        drawings, size, size]), `character` (int32 [domains, classes], a class's index into `image`)
        and `turns` (int32 [domains, classes], anticlockwise; -1 draws them for each episode).
        The support's leading axis is shots × way, the query's queries × way, with the classes
        innermost; batches hold `image` (float32 [examples, size, size, 1] in [0, 1]), `label` (the
        slot), `mask` and `id` (class × drawings + drawing). The context holds `classes` (int32
        [way]). The sampler raises the errors of `check_balanced`.
    """

    def sample(
        table: Table, domain: ArrayLike, shots_now: ArrayLike, key: Key[Array, ""]
    ) -> Episode:
        check_draw(domain, shots_now, len(table["character"]), shots)
        check_balanced(table, way, shots, queries)
        class_key, turn_key, drawing_key = jax.random.split(key, 3)
        drawings = table["image"].shape[2]
        chance = jax.random.uniform(class_key, table["character"].shape[1:])
        classes = jax.lax.top_k(chance, way)[1].astype(jnp.int32)
        character = table["character"][domain, classes]
        turns = table["turns"][domain, classes]
        turns = jnp.where(turns < 0, jax.random.randint(turn_key, (way,), 0, 4), turns)
        chance = jax.random.uniform(drawing_key, (way, drawings))
        drawing = jax.lax.top_k(chance, shots + queries)[1].T.astype(jnp.int32)

        def batch(
            drawing: Int[Array, "examples way"], mask: Bool[Array, " examples"]
        ) -> dict[str, Array]:
            # Rotate bytes rather than floats, and only the drawings of this episode.
            image = _turned(table["image"][domain, character, drawing], turns)
            return {
                "image": image.reshape(-1, *image.shape[2:], 1).astype(jnp.float32) / 255,
                "label": jnp.tile(jnp.arange(way, dtype=jnp.int32), len(drawing)),
                "mask": jnp.repeat(mask, way),
                "id": (classes * drawings + drawing).reshape(-1),
            }

        support = batch(drawing[:shots], jnp.arange(shots) < shots_now)
        query = batch(drawing[shots:], jnp.ones(queries, bool))
        return Episode(support, query, {"classes": classes})

    return sample


def user_sampler(shots: int, candidates: int | None = None) -> SampleFn:
    """Return a sampler of recommendation episodes: an episode is one user.

    The query asks for the user's last product, and K shots are the K products before it. They are
    all that is known about the user: `user_support` turns them into the support, and they are the
    history of the query.

    Args:
        shots: the largest number of products before the last.
        candidates: number of products to rank, for training: those of support and query, and
            random ones; None ranks the domain's whole catalogue.

    Returns:
        (table, domain, shots, key) -> Episode. Batches hold `item` (position among the candidates),
        `history` int32 [examples, shots] and `history_mask`, `popularity` int32 [examples,
        candidates] (how many other users took each product, not counting anyone's last one),
        `mask`, and `id` (the user); the context holds `products` (their rows) and `candidates`
        (bool, which of them exist).

    Raises:
        EpisodeError: fewer candidates than an episode has products.
    """
    if candidates is not None and candidates <= shots:
        raise EpisodeError(
            f"recommendation: {candidates} candidates have no room for the {shots + 1} products of "
            f"a {shots}-shot episode; raise candidates"
        )

    def sample(
        table: Table, domain: ArrayLike, shots_now: ArrayLike, key: Key[Array, ""]
    ) -> Episode:
        check_draw(domain, shots_now, len(table["users"]), shots)
        user_key, candidate_key = jax.random.split(key)
        user = jax.random.randint(user_key, (), 0, table["users"][domain])
        items, taken = table["items"][domain, user], table["taken"][domain, user]
        products = jax.tree.map(lambda leaf: leaf[domain], table["products"])
        total = jax.tree.leaves(table["products"])[0].shape[1]
        exists = jnp.arange(total) < table["catalogue"][domain]
        steps = jnp.arange(shots)

        def before_last(count: Int[Array, ""]) -> Int[Array, " items"]:
            """Return the `count` products before the last, in chronological order, end-padded."""
            return items[jnp.clip(taken - 1 - count + steps, 0, len(items) - 1)]

        mine = _times_in(items, jnp.arange(len(items)) < taken - 1, total)
        popularity = table["popularity"][domain] - mine
        most, last = jnp.minimum(shots, taken - 1), items[taken - 1]
        count = jnp.minimum(shots_now, most)
        history = before_last(count)
        if candidates is not None:
            # The same candidates for every number of shots.
            named = jnp.where(steps < most, before_last(most), last)
            own = jnp.zeros(total, bool).at[named].set(True).at[last].set(True)
            chance = jnp.where(exists, jax.random.gumbel(candidate_key, (total,)), -jnp.inf)
            rows = jax.lax.top_k(jnp.where(own, jnp.inf, chance), min(candidates, total))[1]
            place = jnp.zeros(total, jnp.int32).at[rows].set(jnp.arange(len(rows), dtype=jnp.int32))
            history, last, exists = place[history], place[last], exists[rows]
            products = jax.tree.map(lambda leaf: leaf[rows], products)
            popularity = popularity[rows]

        support = {
            **user_support(history, count, shots, shots_now),
            "popularity": jnp.broadcast_to(popularity, (shots, len(popularity))),
            "id": jnp.full((shots,), user),
        }
        query = {
            "item": last[None],
            "history": history[None],
            "history_mask": (steps < count)[None],
            "popularity": popularity[None],
            "mask": jnp.ones((1,), bool),
            "id": user[None],
        }
        return Episode(support, query, {"products": products, "candidates": exists})

    return sample


def crowd_sampler(users: int, candidates: int | None = None) -> SampleFn:
    """Return a sampler of recommendation episodes for joint training: an episode is many users.

    One encoding of the products serves all users, and each user gives an example for every product,
    given those before it: none for the first, as for a new user. With `candidates`, the episode is
    a smaller shop of what its users took and, if there is room, of random products; what it has no
    room for is taken out of everyone's history.

    Args:
        users: number of users per episode, drawn with replacement.
        candidates: number of products of an episode; None for the domain's whole catalogue.

    Returns:
        (table, domain, shots, key) -> Episode as from `user_sampler`, with users × longest examples
        in the query and none in the support. The number of shots is not read.
    """

    def sample(
        table: Table, domain: ArrayLike, shots_now: ArrayLike, key: Key[Array, ""]
    ) -> Episode:
        check_draw(domain, shots_now, len(table["users"]), None)
        user_key, candidate_key = jax.random.split(key)
        user = jax.random.randint(user_key, (users,), 0, table["users"][domain])
        items, taken = table["items"][domain, user], table["taken"][domain, user]
        total = jax.tree.leaves(table["products"])[0].shape[1]
        exists = jnp.arange(total) < table["catalogue"][domain]
        rows = jnp.arange(total)
        if candidates is not None and candidates < total:
            own = jnp.arange(items.shape[1]) < taken[:, None]
            # A large shop drawn at random has hardly a product of anyone's history.
            theirs = jnp.zeros(total, bool).at[items].max(own)
            chance = jax.random.uniform(candidate_key, (total,))
            chance = jnp.where(theirs, 1 + chance, chance)
            rows = jax.lax.top_k(jnp.where(exists, chance, -jnp.inf), candidates)[1]
        place = jnp.full(total, -1, jnp.int32).at[rows].set(jnp.arange(len(rows), dtype=jnp.int32))
        longest, steps = items.shape[1], jnp.arange(items.shape[1])
        history = jnp.where(steps < taken[:, None], place[items], -1)
        there = history >= 0
        history = jnp.maximum(history, 0)
        counted = there & (steps < taken[:, None] - 1)
        mine = jax.vmap(_times_in, in_axes=(0, 0, None))(history, counted, len(rows))
        before = there[:, None, :] & (steps < steps[:, None])

        def flat(leaf: Array) -> Array:
            return leaf.reshape(users * longest, *leaf.shape[2:])

        def repeated(leaf: Array) -> Array:
            return jnp.repeat(leaf, longest, axis=0)

        query = {
            "item": flat(history),
            "history": repeated(history),
            "history_mask": flat(before),
            "popularity": repeated(table["popularity"][domain][rows] - mine),
            "mask": flat(there),
            "id": repeated(user),
        }
        products = jax.tree.map(lambda leaf: leaf[domain][rows], table["products"])
        support = {name: leaf[:0] for name, leaf in query.items()}
        return Episode(support, query, {"products": products, "candidates": exists[rows]})

    return sample


def user_support(
    history: Int[Array, " items"], taken: Int[Array, ""], examples: int, shots: ArrayLike
) -> dict[str, Array]:
    """Return a user's last products as the examples to adapt to, the latest first.

    Example t asks for the product that is followed by t others, given all products before it.
    Training and serving both adapt to these examples.

    Args:
        history: products in chronological order, padded at the end.
        taken: number of products, without padding.
        examples: static number of examples.
        shots: number of examples that count.

    Returns:
        `item` [examples], `history` [examples, items], `history_mask` and `mask`.
    """
    place = taken - 1 - jnp.arange(examples)
    return {
        "item": history[jnp.maximum(place, 0)],
        "history": jnp.broadcast_to(history, (examples, len(history))),
        "history_mask": jnp.arange(len(history)) < place[:, None],
        "mask": (place >= 0) & (jnp.arange(examples) < shots),
    }


def draw_domain(weights: Float[Array, " domains"], key: Key[Array, ""]) -> Int[Array, ""]:
    """Draw a domain in proportion to its weight; one of weight 0 is never drawn."""
    return jax.random.categorical(key, jnp.log(weights))


def check_draw(domain: ArrayLike, shots: ArrayLike, domains: int, most: int | None) -> None:
    """Refuse a domain or a number of shots that a sampler does not have.

    Only plain whole numbers are looked at: inside a program they have no values, and an index that
    is too large reads the last entry.

    Args:
        domain: index of the domain.
        shots: number of shots.
        domains: number of domains of the data.
        most: the largest number of shots; None if shots are not read.

    Raises:
        EpisodeError: one of them is out of range.
    """
    if isinstance(domain, int | np.integer) and not 0 <= domain < domains:
        raise EpisodeError(f"domain {domain}: the data have {domains}, counted from 0")
    if isinstance(shots, int | np.integer) and most is not None and not 0 <= shots <= most:
        raise EpisodeError(f"{shots} shots: the sampler draws {most} at most; raise its shots")


def check_draws(distribution: TaskDistribution, data: Any, domain: int, shots: int) -> None:
    """Refuse a domain and a number of shots that a distribution does not have, before any is drawn.

    The sampler is traced with plain ints, so that it can refuse them, as by `check_draw`.

    Args:
        distribution: the source of episodes.
        data: its data, or arrays of their shapes.
        domain: index of a domain.
        shots: number of shots.

    Raises:
        EpisodeError: there is no such domain, or the episodes have other classes than the problem;
            a sampler raises its own errors.
    """
    names, way = distribution.domains, distribution.problem.way
    if not 0 <= domain < len(names):
        raise EpisodeError(f"domain {domain}: there are {len(names)}, {', '.join(names)}")

    def draw(data: Any, key: Key[Array, ""]) -> Episode:
        return distribution.sample(data, int(domain), int(shots), key)

    context = jax.eval_shape(draw, data, jax.random.key(0)).context
    classes = context.get("classes") if isinstance(context, Mapping) else None
    if way is not None and classes is not None and classes.shape != (way,):
        raise EpisodeError(
            f"the episodes have {classes.shape[-1]} classes, and the problem has {way}"
        )


def check_labelled(table: Table, domains: tuple[str, ...], way: int, shots: int, kind: str) -> None:
    """Refuse a labelled table that cannot give `way`-way `shots`-shot episodes.

    A class counts if it has at least one example besides its `shots`, to serve as a query.

    Raises:
        EpisodeError: a domain has too few such classes; the message names it and the fix.
    """
    for name, count in zip(domains, np.asarray(table["count"]), strict=True):
        enough = int((count > shots).sum())
        if enough < way:
            raise EpisodeError(
                f"domain {name}, {kind}: {way}-way {shots}-shot episodes need {way} classes with "
                f"at least {shots + 1} examples; it has {enough} (examples by class: "
                f"{', '.join(map(str, count))}); lower way or shots"
            )


def check_balanced(table: Table, way: int, shots: int, queries: int) -> None:
    """Refuse a table of pictures that cannot give `way`-way `shots`-shot episodes.

    Raises:
        EpisodeError: there are too few classes or too few drawings per class, or an episode would
            have no class or no query; the message names the fix.
    """
    if way < 1 or shots < 0 or queries < 1:
        raise EpisodeError(
            f"{way}-way {shots}-shot episodes with {queries} queries per class do not exist: there "
            f"must be at least 1 way, 0 shots and 1 query; raise way, shots or queries"
        )
    classes, drawings = table["character"].shape[1], table["image"].shape[2]
    if classes < way:
        raise EpisodeError(f"{way}-way episodes need {way} classes; there are {classes}; lower way")
    if drawings < shots + queries:
        raise EpisodeError(
            f"{shots}-shot episodes with {queries} queries need {shots + queries} drawings of each "
            f"class; there are {drawings}; lower shots or queries"
        )


def check_users(table: Table, domains: tuple[str, ...]) -> None:
    """Refuse a table with a domain in which no user has two products.

    Raises:
        EpisodeError: the message names the domain.
    """
    for name, users in zip(domains, np.asarray(table["users"]), strict=True):
        if users < 1:
            raise EpisodeError(
                f"domain {name}, recommendation: no user took two products, so there is nothing to "
                f"predict; remove its interactions or add more"
            )


def _times_in(
    history: Int[Array, " items"], counted: Bool[Array, " items"], products: int
) -> Int[Array, " products"]:
    """Return how often each product is in a history, at the places that are counted."""
    return jnp.zeros(products, jnp.int32).at[history].add(counted.astype(jnp.int32))


def _batch(
    table: Table,
    domain: ArrayLike,
    rows: Int[Array, " examples"],
    label: Int[Array, " examples"],
    mask: Bool[Array, " examples"],
) -> dict[str, Array]:
    fields = {name: leaf[domain, rows] for name, leaf in table["rows"].items()}
    return {**fields, "label": label, "mask": mask, "id": rows}


def _turned(
    image: UInt8[Array, "... way size size"], turns: Int[Array, " way"]
) -> UInt8[Array, "... way size size"]:
    """Return pictures [..., way, size, size], with each class rotated as by `numpy.rot90`."""
    turns = turns[:, None, None]
    image = jnp.where(turns % 2 == 1, image.swapaxes(-1, -2), image)
    image = jnp.where((turns == 1) | (turns == 2), image[..., ::-1, :], image)
    return jnp.where(turns >= 2, image[..., ::-1], image)
