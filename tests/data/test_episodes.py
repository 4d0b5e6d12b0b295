from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaguide.data.encoding import labelled_table
from metaguide.data.episodes import (
    EpisodeError,
    balanced_sampler,
    check_balanced,
    check_labelled,
    check_users,
    crowd_sampler,
    draw_domain,
    episode_key,
    labelled_sampler,
    user_sampler,
)

DOMAINS, CLASSES, LARGEST = 2, 5, 8
WAY, SHOTS, QUERIES = 3, 2, 9
many = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**31 - 1)


@cache
def labelled(way=WAY, shots=SHOTS, queries=QUERIES, ordered=False):
    return jax.jit(labelled_sampler(way, shots, queries, ordered))


@st.composite
def tables(draw, fewest=WAY, priority=False):
    """A labelled table in which at least `fewest` classes of each domain have enough examples."""
    enough = st.integers(SHOTS + 1, LARGEST)
    counts, first = [], []
    for _ in range(DOMAINS):
        some = [draw(enough) for _ in range(fewest)]
        some += [draw(st.integers(0, LARGEST)) for _ in range(CLASSES - fewest)]
        order = draw(st.permutations(range(CLASSES)))
        counts.append([some[place] for place in order])
        first.append([place < WAY - 1 and priority for place in order])
    counts = np.array(counts, np.int32)
    members = np.zeros((DOMAINS, CLASSES, LARGEST), np.int32)
    label = np.full((DOMAINS, CLASSES * LARGEST), -1, np.int32)
    for domain in range(DOMAINS):
        rows = iter(draw(st.permutations(range(counts[domain].sum()))))
        for one in range(CLASSES):
            for place in range(counts[domain, one]):
                members[domain, one, place] = row = next(rows)
                label[domain, row] = one
    table = {"rows": {"class": label}, "members": members, "count": counts}
    names = np.arange(1, 1 + DOMAINS * CLASSES, dtype=np.int32).reshape(DOMAINS, CLASSES, 1)
    has_names = names[..., 0] % 4 != 0
    extra = {"names": {"tokens": names}, "has_names": has_names, "priority": np.array(first)}
    extra["known_names"] = names[..., 0] % 3 == 0
    return {**table, **extra} if priority else table


def taken(table, domain, shots, seed, **options):
    sample = labelled(**options)
    episode = sample(table, np.int32(domain), np.int32(shots), jax.random.key(seed))
    return jax.tree.map(np.asarray, episode)


@pytest.mark.slow
@many
@given(tables(), seeds, st.integers(0, DOMAINS - 1))
def test_supports_are_nested_and_queries_the_same(table, seed, domain):
    """Faults: another number of shots draws another support, or other queries, so that a curve
    over shots compares different examples."""
    episodes = [taken(table, domain, shots, seed) for shots in range(SHOTS + 1)]
    for shots, episode in enumerate(episodes):
        expected = np.repeat(np.arange(SHOTS) < shots, WAY)
        np.testing.assert_array_equal(episode.support["mask"], expected)
        for part in ("query", "context"):
            jax.tree.map(
                np.testing.assert_array_equal, getattr(episode, part), getattr(episodes[0], part)
            )
        np.testing.assert_array_equal(episode.support["id"], episodes[0].support["id"])


@many
@given(tables(), seeds, st.integers(0, DOMAINS - 1))
def test_an_episode_is_what_it_says(table, seed, domain):
    """Faults: support and query share examples; a class stands in two slots; a label is not that
    of its row; padding of the table is served as an example; examples are left out though there is
    room for them."""
    support, query, context = taken(table, domain, SHOTS, seed)
    classes, counts = context["classes"], table["count"][domain]
    assert len(set(classes)) == WAY and (counts[classes] > SHOTS).all()
    real = query["id"][query["mask"]]
    both = [*support["id"], *real]
    assert len(set(both)) == len(both)
    assert len(real) == min(QUERIES, counts[classes].sum() - WAY * SHOTS)
    for part, mask in ((support, support["mask"]), (query, query["mask"])):
        np.testing.assert_array_equal(classes[part["label"]][mask], part["class"][mask])
    np.testing.assert_array_equal(support["label"], np.tile(np.arange(WAY), SHOTS))
    assert ((query["label"] >= 0) & (query["label"] < WAY)).all()
    np.testing.assert_array_equal(part["class"][mask], table["rows"]["class"][domain, real])


@many
@given(tables(priority=True), seeds, st.integers(0, DOMAINS - 1))
def test_classes_that_have_to_be_there_are(table, seed, domain):
    """Faults: an episode lacks a priority class; the names are of other classes; a class without a
    name counts as named, or one with an unseen name as known."""
    context = taken(table, domain, SHOTS, seed).context
    wanted = table["priority"][domain] & (table["count"][domain] > SHOTS)
    assert set(np.flatnonzero(wanted)) <= set(context["classes"])
    names, classes = table["names"]["tokens"][domain], context["classes"]
    np.testing.assert_array_equal(context["names"]["tokens"], names[classes])
    np.testing.assert_array_equal(context["has_names"], names[classes, 0] % 4 != 0)
    np.testing.assert_array_equal(context["known_names"], names[classes, 0] % 3 == 0)


@many
@given(tables(), seeds)
def test_ordered_classes_keep_their_order(table, seed):
    """Fault: negative and positive change places between episodes: a head learns nothing."""
    classes = taken(table, 0, 1, seed, ordered=True).context["classes"]
    assert (np.diff(classes) > 0).all()


@many
@given(tables(), seeds)
def test_more_queries_than_examples_are_masked(table, seed):
    """Fault: a domain with fewer examples than the queries asked for is an error."""
    queries = WAY * LARGEST + 5
    _, query, context = taken(table, 1, SHOTS, seed, queries=queries)
    assert query["mask"].shape == query["id"].shape == query["class"].shape == (queries,)
    assert query["mask"].sum() == table["count"][1][context["classes"]].sum() - WAY * SHOTS
    assert ((query["label"] >= 0) & (query["label"] < WAY)).all()


def drawn(table, episodes, way, shots, queries):
    keys = jax.random.split(jax.random.key(0), episodes)
    sample = labelled_sampler(way, shots, queries)
    return jax.jit(jax.vmap(lambda key: sample(table, 0, shots, key)))(keys)


def plain_table(count):
    members = np.arange(len(count) * max(count), dtype=np.int32).reshape(1, len(count), -1)
    rows = {"class": np.repeat(np.arange(len(count), dtype=np.int32), max(count))[None]}
    table = {"rows": rows, "members": members, "count": np.array([count], np.int32)}
    return jax.tree.map(jnp.asarray, table)


def test_queries_follow_the_prior_and_slots_are_shuffled():
    """Faults: the query is balanced like the support (the prior of the domain is lost), or a class
    always has the same slot, which a head would learn by heart."""
    episodes = drawn(plain_table([3, 27]), 1500, way=2, shots=2, queries=4)
    rate = (np.asarray(episodes.query["class"]) == 0).mean()
    assert abs(rate - 1 / 26) < 0.015
    assert abs((np.asarray(episodes.context["classes"])[:, 0] == 0).mean() - 0.5) < 0.06
    used = np.bincount(np.asarray(episodes.support["id"]).reshape(-1), minlength=54)
    assert (used[[0, 1, 2]] > 800).all() and (used[27:54] > 50).all() and used[3:27].sum() == 0


def test_episodes_without_support():
    """Fault: zero shots in all is an error."""
    episodes = drawn(plain_table([4, 4, 4]), 3, way=3, shots=0, queries=9)
    assert episodes.support["id"].shape == (3, 0) and episodes.query["mask"].all()


def test_an_episode_is_a_function_of_seed_split_and_index():
    """Faults: two splits, seeds or episodes share a key; a key depends on the count of episodes."""
    names = [
        (seed, split, index)
        for seed in (0, 1, 2)
        for split in ("train", "validation", "test")
        for index in (0, 1, 2)
    ]
    keys = {tuple(np.asarray(jax.random.key_data(episode_key(*name)))) for name in names}
    assert len(keys) == len(names)
    again = jax.jit(lambda index: episode_key(1, "test", index))(2)
    np.testing.assert_array_equal(
        jax.random.key_data(again), jax.random.key_data(episode_key(1, "test", 2))
    )


CHARACTERS, DRAWINGS, SIZE, ASKED = 4, 7, 5, 3


@cache
def balanced(way=WAY, shots=SHOTS, queries=ASKED, several=False):
    sample = balanced_sampler(way, shots, queries)
    return jax.jit(jax.vmap(sample, (None, None, None, 0)) if several else sample)


@st.composite
def picture_tables(draw):
    """Pictures without symmetry, of which some classes are turned and others at random."""
    size = (DOMAINS, CHARACTERS, DRAWINGS, SIZE, SIZE)
    image = np.random.default_rng(draw(seeds)).integers(0, 256, size, np.uint8)
    classes = draw(st.integers(WAY, 2 * CHARACTERS))
    several = st.lists(st.integers(-1, 3), min_size=classes, max_size=classes)
    character = [np.arange(classes) % CHARACTERS, draw(st.permutations(np.arange(classes) % 3))]
    return {
        "image": image,
        "character": np.array(character, np.int32),
        "turns": np.array([draw(several), draw(several)], np.int32),
    }


@pytest.mark.slow
@many
@given(picture_tables(), seeds, st.integers(0, DOMAINS - 1))
def test_a_balanced_episode_is_what_it_says(table, seed, domain):
    """Faults: a class stands in two slots; support and query share a drawing; a label is another
    slot's; a class has fewer queries than others; a picture is not of its class; the drawings of a
    class are turned differently, or otherwise than the table says; ink is not 1."""
    sample = balanced()
    episode = sample(table, np.int32(domain), np.int32(SHOTS), jax.random.key(seed))
    support, query, context = jax.tree.map(np.asarray, episode)
    classes = context["classes"]
    assert len(set(classes)) == WAY and classes.dtype == np.int32
    assert set(classes) <= set(range(table["turns"].shape[1]))
    both = {name: np.concatenate([support[name], query[name]]) for name in query}
    slots = np.arange(WAY)
    np.testing.assert_array_equal(both["label"], np.tile(slots, SHOTS + ASKED))
    assert both["mask"].all() and len(support["mask"]) == SHOTS * WAY
    assert len(set(both["id"])) == (SHOTS + ASKED) * WAY
    np.testing.assert_array_equal(both["id"] // DRAWINGS, classes[both["label"]])
    types = {name: leaf.dtype for name, leaf in both.items()}
    assert types == {"image": np.float32, "label": np.int32, "mask": bool, "id": np.int32}
    for slot, one in enumerate(classes):
        own = both["label"] == slot
        drawn = table["image"][domain, table["character"][domain, one], both["id"][own] % DRAWINGS]
        shown = both["image"][own]
        assert shown.shape == (SHOTS + ASKED, SIZE, SIZE, 1)
        fixed = table["turns"][domain, one]
        turned = [
            np.allclose(shown[..., 0], np.rot90(drawn, turns, (1, 2)) / 255, atol=1e-6)
            for turns in (range(4) if fixed < 0 else [fixed])
        ]
        assert sum(turned) == 1


@pytest.mark.slow
@many
@given(seeds)
def test_balanced_supports_are_nested(seed):
    """Faults: another number of shots draws other classes, turns, supports or queries; the same key
    gives another episode, alone or among others."""
    table = plain_pictures(6)
    keys = jax.random.split(jax.random.key(seed), 3)
    among = jax.tree.map(lambda leaf: leaf[1], balanced(several=True)(table, 0, SHOTS, keys))
    for shots in range(SHOTS + 1):
        episode = balanced()(table, 0, shots, keys[1])
        expected = np.repeat(np.arange(SHOTS) < shots, WAY)
        np.testing.assert_array_equal(episode.support["mask"], expected)
        same = episode._replace(support={**episode.support, "mask": among.support["mask"]})
        jax.tree.map(np.testing.assert_array_equal, same, among)


def plain_pictures(characters):
    """Pictures of one dot each, in the first corner until it is turned."""
    image = np.zeros((1, characters, DRAWINGS, SIZE, SIZE), np.uint8)
    image[..., 0, 0] = 1
    turns = np.full((1, characters), -1, np.int32)
    table = {"image": image, "character": np.arange(characters, dtype=np.int32)[None]}
    return jax.tree.map(jnp.asarray, {**table, "turns": turns})


def test_balanced_draws_are_even():
    """Faults: a class, a drawing, a turn or a slot is drawn more often than others; classes of an
    episode are turned alike; a drawing is for the support only."""
    keys = jax.random.split(jax.random.key(0), 4000)
    sample = balanced_sampler(2, 1, 2)
    table = plain_pictures(5)
    episodes = jax.jit(jax.vmap(lambda key: sample(table, 0, 1, key)))(keys)
    support, query, context = jax.tree.map(np.asarray, episodes)
    for slot in range(2):
        assert abs(np.bincount(context["classes"][:, slot]) / 4000 - 1 / 5).max() < 0.03
    for part, shots in ((support, 1), (query, 2)):
        used = np.bincount(part["id"].reshape(-1), minlength=5 * DRAWINGS)
        np.testing.assert_allclose(used / (4000 * shots * 2), 1 / (5 * DRAWINGS), atol=0.006)
    corners = support["image"][:, :, [0, 0, -1, -1], [0, -1, 0, -1], 0] > 0
    assert (corners.sum(-1) == 1).all()
    first, second = corners.argmax(-1).T
    together = np.bincount(first * 4 + second, minlength=16) / 4000
    np.testing.assert_allclose(together, 1 / 16, atol=0.02)


def test_balanced_episodes_without_support_or_left_over_drawings():
    """Faults: zero shots in all is an error; so is an episode that takes every drawing."""
    table = plain_pictures(WAY)
    episode = balanced(shots=0, queries=DRAWINGS)(table, 0, 0, jax.random.key(0))
    assert episode.support["image"].shape == (0, SIZE, SIZE, 1)
    np.testing.assert_array_equal(np.sort(episode.query["id"]), np.arange(WAY * DRAWINGS))


def test_a_table_of_too_few_pictures_is_an_error():
    """Faults: XLA's error about top_k is all that one hears, or the fix is another field's; no
    class, or no query, is an episode."""
    table = plain_pictures(4)
    check_balanced(table, 4, 2, 5)
    with pytest.raises(EpisodeError, match="5-way .* need 5 classes"):
        balanced_sampler(5, 2, 5)(table, 0, 2, jax.random.key(0))
    for way, shots, queries in ((0, 1, 1), (2, -1, 1), (2, 1, 0)):
        with pytest.raises(EpisodeError, match="at least 1 way, 0 shots and 1 query; raise way"):
            check_balanced(table, way, shots, queries)
    with pytest.raises(EpisodeError, match="5-way .* need 5 classes; there are 4; lower way"):
        check_balanced(table, 5, 2, 5)
    words = "3-shot .* 5 queries need 8 drawings .* are 7; lower shots or queries"
    with pytest.raises(EpisodeError, match=words):
        check_balanced(table, 4, 3, 5)


USERS, LONGEST, PRODUCTS = 3, 7, 12


@cache
def users(candidates):
    return jax.jit(user_sampler(SHOTS + 1, candidates))


@cache
def crowds(number, candidates):
    return jax.jit(crowd_sampler(number, candidates))


def own_products(table, domain, user):
    return table["items"][domain, user, : table["taken"][domain, user]].tolist()


def takers(table, domain, but=None):
    """How many users but this one took each product, not counting anyone's last one."""
    counts = np.zeros(PRODUCTS, np.int32)
    for user in range(table["users"][domain]):
        if user != but:
            counts[own_products(table, domain, user)[:-1]] += 1
    return counts


@st.composite
def user_tables(draw):
    items = np.zeros((DOMAINS, USERS, LONGEST), np.int32)
    taken = np.zeros((DOMAINS, USERS), np.int32)
    catalogue = np.array([draw(st.integers(LONGEST, PRODUCTS)) for _ in range(DOMAINS)], np.int32)
    for domain in range(DOMAINS):
        for user in range(USERS):
            count = taken[domain, user] = draw(st.integers(2, LONGEST))
            items[domain, user, :count] = draw(st.permutations(range(catalogue[domain])))[:count]
    products = {"tokens": np.arange(DOMAINS * PRODUCTS, dtype=np.int32)}
    table = {
        "products": {"tokens": products["tokens"].reshape(DOMAINS, PRODUCTS, 1)},
        "catalogue": catalogue,
        "items": items,
        "taken": taken,
        "users": np.array([draw(st.integers(1, USERS)) for _ in range(DOMAINS)], np.int32),
    }
    popularity = np.stack([takers(table, domain) for domain in range(DOMAINS)])
    return {**table, "popularity": popularity}


@pytest.mark.parametrize("candidates", [None, SHOTS + 2, 7, 40])
def test_a_user_episode_is_what_it_says(candidates):
    """Faults: an example's history holds what came after it; the target is known; shots are the
    first products and not those before the target, as a shop knows them; the user's own
    products are not among the candidates, or their positions point at others; padding of the
    catalogue is ranked."""
    shots = SHOTS + 1

    @many
    @given(user_tables(), seeds, st.integers(0, DOMAINS - 1))
    def check(table, seed, domain):
        key, everyone = jax.random.key(seed), []
        for now in range(shots + 1):
            episode = users(candidates)(table, np.int32(domain), np.int32(now), key)
            support, query, context = jax.tree.map(np.asarray, episode)
            user = query["id"][0]
            everyone.append((user, *query["item"], *support["item"]))
            assert user < table["users"][domain]
            own = own_products(table, domain, user)
            # A product's token is its number, so that positions can be followed back.
            number = context["products"]["tokens"][:, 0] - domain * PRODUCTS
            size = PRODUCTS if candidates is None else min(candidates, PRODUCTS)
            assert len(number) == size == len(set(number))
            exists = number < table["catalogue"][domain]
            np.testing.assert_array_equal(context["candidates"], exists)

            count = min(now, len(own) - 1)
            np.testing.assert_array_equal(support["mask"], np.arange(shots) < count)
            shown = own[len(own) - 1 - count : -1]
            assert list(number[support["item"][:count]]) == shown[::-1]
            for t in range(count):
                before = support["history"][t][support["history_mask"][t]]
                assert list(number[before]) == shown[: count - 1 - t]
            known = query["history"][0][query["history_mask"][0]]
            assert list(number[known]) == shown
            assert number[query["item"][0]] == own[-1] and query["mask"].all()
            assert query["item"][0] not in known and context["candidates"][query["item"][0]]
            others = takers(table, domain, but=user)[number]
            np.testing.assert_array_equal(query["popularity"], others[None])
            np.testing.assert_array_equal(support["popularity"], np.tile(others, (shots, 1)))
        assert len({user for user, *_ in everyone}) == 1

    check()


def test_candidates_are_drawn_from_the_whole_catalogue():
    """Fault: some product is always, or never, among the candidates that are not the user's own."""
    table = {
        "products": {"tokens": np.arange(PRODUCTS, dtype=np.int32).reshape(1, PRODUCTS, 1)},
        "catalogue": np.array([PRODUCTS - 2], np.int32),
        "items": np.array([[[5, 6, 0, 0]]], np.int32),
        "taken": np.array([[2]], np.int32),
        "users": np.array([1], np.int32),
        "popularity": np.eye(1, PRODUCTS, 5, dtype=np.int32),
    }
    sample = user_sampler(3, candidates=5)
    table = jax.tree.map(jnp.asarray, table)
    keys = jax.random.split(jax.random.key(0), 1000)
    products = jax.jit(jax.vmap(lambda key: sample(table, 0, 3, key)))(keys).context["products"]
    rate = np.bincount(np.asarray(products["tokens"]).reshape(-1), minlength=PRODUCTS) / 1000
    np.testing.assert_array_equal(rate[[5, 6]], 1)
    np.testing.assert_array_equal(rate[PRODUCTS - 2 :], 0)
    np.testing.assert_allclose(np.delete(rate[: PRODUCTS - 2], [5, 6]), 3 / 8, atol=0.06)


CROWD = 5


@pytest.mark.slow
@pytest.mark.parametrize("candidates", [None, 4, 7, 40])
def test_a_crowd_episode_is_what_it_says(candidates):
    """Faults: an example's history holds what came after it, or the product itself; a product that
    the small shop does not have is asked for, or stands in a history as another one; a product
    that it has is not asked for, with nothing before it or with something; padding of a history
    is product 0; popularity counts the user's own products, or what others are asked for,
    twice where a user is drawn twice, or is that of other products; the support has rows; the
    episode depends on the number of shots; padding of the catalogue is ranked; a small shop has
    products that no user of it took, and lacks some that they did."""

    @many
    @given(user_tables(), seeds, st.integers(0, DOMAINS - 1))
    def check(table, seed, domain):
        sample, key = crowds(CROWD, candidates), jax.random.key(seed)
        found = [sample(table, np.int32(domain), np.int32(shots), key) for shots in (0, 2)]
        jax.tree.map(np.testing.assert_array_equal, *found)
        support, query, context = jax.tree.map(np.asarray, found[0])
        assert {name: leaf.shape for name, leaf in support.items()} == {
            name: (0, *leaf.shape[1:]) for name, leaf in query.items()
        }
        number = context["products"]["tokens"][:, 0] - domain * PRODUCTS
        size = PRODUCTS if candidates is None else min(candidates, PRODUCTS)
        assert len(number) == size == len(set(number))
        assert {number[i] for i in np.flatnonzero(context["candidates"])} == {
            one for one in number if one < table["catalogue"][domain]
        }
        assert context["candidates"].sum() == min(size, table["catalogue"][domain])
        rows = {name: leaf.reshape(CROWD, LONGEST, *leaf.shape[1:]) for name, leaf in query.items()}
        theirs = {one for user in rows["id"][:, 0] for one in own_products(table, domain, user)}
        shop = {one for one in number if one < table["catalogue"][domain]}
        assert theirs <= shop or shop <= theirs
        assert rows["history"].shape == rows["history_mask"].shape == (CROWD, LONGEST, LONGEST)
        for place in range(CROWD):
            row = {name: leaf[place] for name, leaf in rows.items()}
            user = row["id"][0]
            assert (row["id"] == user).all() and 0 <= user < table["users"][domain]
            others = takers(table, domain, but=user)[number]
            np.testing.assert_array_equal(row["popularity"], np.tile(others, (LONGEST, 1)))
            own = own_products(table, domain, user)
            for step in range(LONGEST):
                before = [product for product in own[:step] if product in number]
                asked = step < len(own) and own[step] in number
                assert row["mask"][step] == asked
                if asked:
                    known = row["history"][step][row["history_mask"][step]]
                    assert number[known].tolist() == before
                    assert number[row["item"][step]] == own[step]
        assert 0 <= query["item"].min() and query["item"].max() < size
        assert 0 <= query["history"].min() and query["history"].max() < size

    check()


def test_a_crowd_and_its_shop_are_drawn_evenly():
    """Faults: some user is always or never in the crowd, or users of a crowd are all the same; some
    product that nobody took is always, or never, in the small shop; one that does not exist is."""
    table = {
        "products": {"tokens": np.arange(PRODUCTS, dtype=np.int32).reshape(1, PRODUCTS, 1)},
        "catalogue": np.array([PRODUCTS - 2], np.int32),
        "items": np.array([[[5, 6], [1, 2], [3, 4], [0, 0]]], np.int32),
        "taken": np.array([[2, 2, 2, 0]], np.int32),
        "users": np.array([3], np.int32),
        "popularity": np.array([[0, 1, 0, 1, 0, 1] + [0] * 6], np.int32),
    }
    sample = crowd_sampler(2, candidates=4)
    table = jax.tree.map(jnp.asarray, table)
    keys = jax.random.split(jax.random.key(0), 2000)
    episodes = jax.jit(jax.vmap(lambda key: sample(table, 0, 0, key)))(keys)
    first, second = np.asarray(episodes.query["id"])[:, [0, 2]].T
    together = np.bincount(3 * first + second, minlength=9) / 2000
    np.testing.assert_allclose(together, 1 / 9, atol=0.03)
    tokens = np.asarray(episodes.context["products"]["tokens"])
    rate = np.bincount(tokens.reshape(-1), minlength=PRODUCTS) / 2000
    np.testing.assert_array_equal(rate[PRODUCTS - 2 :], 0)
    # A user is drawn with a chance of 5/9. A crowd that is the same user twice, of a chance of 3/9,
    # leaves room for two of the eight products that this one did not take.
    np.testing.assert_allclose(rate[1:7], 5 / 9 + 2 / 9 * 2 / 8, atol=0.05)
    np.testing.assert_allclose(rate[[0, 7, 8, 9]], 3 / 9 * 2 / 8, atol=0.03)


def test_too_few_candidates_is_an_error():
    """Fault: a user's own product falls out of the candidates, and another one is the target."""
    with pytest.raises(EpisodeError, match="3 candidates .* 4"):
        user_sampler(3, candidates=3)


def test_a_domain_of_weight_zero_is_never_drawn():
    """Faults: weight 0 is a small weight; weights are taken for logits."""
    keys = jax.random.split(jax.random.key(0), 4000)
    weights = jnp.asarray([0.0, 3.0, 1.0, 0.0])
    found = np.bincount(jax.jit(jax.vmap(lambda key: draw_domain(weights, key)))(keys), minlength=4)
    assert found[0] == found[3] == 0 and abs(found[1] / 4000 - 0.75) < 0.03


def test_errors_name_the_domain_and_the_fix():
    """Faults: a domain that cannot give the episodes is found out by wrong episodes; the error
    does not say which one or what to do."""
    table = {"count": np.array([[5, 5, 5], [5, 2, 5]])}
    check_labelled(table, ("phones", "books"), 2, 4, "classification")
    with pytest.raises(EpisodeError, match="books, classification: 3-way 2-shot .*lower way or"):
        check_labelled(table, ("phones", "books"), 3, 2, "classification")
    with pytest.raises(EpisodeError, match="phones, sentiment: .* 3 classes with at least 6"):
        check_labelled(table, ("phones", "books"), 3, 5, "sentiment")
    check_users({"users": np.array([1, 2])}, ("phones", "books"))
    with pytest.raises(EpisodeError, match="books, recommendation: no user .* add more"):
        check_users({"users": np.array([1, 0])}, ("phones", "books"))


FIELDS = {"x": np.zeros((4, 2), np.float32)}
BAD_LABELS = [
    ([0, 1, 2, 3], {"classes": 3}, "int64 from 0 to 3; give whole numbers from 0 to 2"),
    ([1, 2, 3, 4], {"classes": 4}, "from 1 to 4; give whole numbers from 0 to 3"),
    ([0, -1, 1, 0], {}, "from -1 to 1"),
    ([0, 0.5, 1, 0], {}, "float64 from 0.0 to 1.0"),
    ([0, 1, 1], {}, r"labels are \[3\], and its fields have 4 examples"),
    (np.eye(4, dtype=int), {}, r"labels are \[4, 4\]"),
]


@pytest.mark.parametrize(("label", "options", "said"), BAD_LABELS)
def test_labels_that_a_table_cannot_hold_are_refused(label, options, said):
    """Faults: a class is dropped and another one padded with its first example; a label without an
    example takes the last; one-hot labels become two classes."""
    with pytest.raises(ValueError, match=said):
        labelled_table([FIELDS], [np.asarray(label)], **options)


def test_a_table_of_labels_has_each_example_once():
    """Fault: an example is in no class, in another one, or in two."""
    labels = [np.array([1, 0, 1, 2]), np.array([0, 0, 0, 2])]
    table = labelled_table([FIELDS, FIELDS], labels)
    assert table["count"].tolist() == [[1, 2, 1], [3, 0, 1]]
    for domain, label in enumerate(labels):
        for name, count in enumerate(table["count"][domain]):
            found = table["members"][domain, name, :count].tolist()
            assert found == np.flatnonzero(label == name).tolist()
    with pytest.raises(ValueError, match="2 domains have rows, and 1 have labels"):
        labelled_table([FIELDS, FIELDS], labels[:1])
