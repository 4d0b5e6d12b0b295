"""Masked language modelling: hide whole words, then predict them."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from metaguide.objectives.tasks import is_highest, masked_mean


class Gathered(NamedTuple):
    """Chosen positions in a list of fixed length.

    Attributes:
        indices: positions in the flattened batch, `row * length + column`; 0 where not valid.
        valid: which entries of the list are chosen positions.
        dropped: number of chosen positions that did not fit, 0 when `limit` suffices; log it.
    """

    indices: Int[Array, " limit"]
    valid: Bool[Array, " limit"]
    dropped: Int[Array, ""]


def mask_words(
    key: Key[Array, ""],
    tokens: Int[Array, "batch length"],
    words: Int[Array, "batch length"],
    *,
    mask_rate: float = 0.15,
    mask_id: int,
    vocabulary: int,
    specials: int = 5,
    variant: Literal["mask", "80-10-10"] = "mask",
) -> tuple[Int[Array, "batch length"], Bool[Array, "batch length"]]:
    """Hide whole words of each text (Devlin et al. 2019, with whole-word masking).

    In a text with n words, max(1, round(mask_rate · n)) words are drawn without replacement, and
    all tokens of a drawn word are chosen; in a text without words, none. Shapes are static, so it
    runs in `jit`.

    Args:
        key: PRNG key.
        tokens: token ids.
        words: index of each token's word, in [0, length); negative for tokens outside words.
        mask_rate: share of the words to hide, in (0, 1].
        mask_id: the id that stands for a hidden token.
        vocabulary: number of ids; random tokens are drawn from [specials, vocabulary).
        specials: ids below this are never chosen.
        variant: "mask" hides every chosen token; "80-10-10" hides 80% of the chosen tokens, puts
            a random token in place of 10%, and leaves 10% as they are.

    Returns:
        The inputs, and which positions were chosen.

    Raises:
        ValueError: `mask_rate`, `vocabulary` or `variant` is out of range.
    """
    if not 0 < mask_rate <= 1:
        raise ValueError(f"mask_rate {mask_rate} is not in (0, 1]")
    if vocabulary <= specials:
        raise ValueError(f"a vocabulary of {vocabulary} has nothing beyond {specials} specials")
    choice, fate, substitute = jax.random.split(key, 3)
    batch, length = tokens.shape
    maskable = (words >= 0) & (tokens >= specials)
    slots = jnp.where(maskable, words, length)  # an extra slot takes tokens outside words
    rows = jnp.arange(batch)[:, None]
    present = jnp.zeros((batch, length + 1), bool).at[rows, slots].set(True)[:, :length]
    number = present.sum(1)
    draws = jnp.round(mask_rate * number.astype(jnp.float32)).astype(number.dtype)
    draws = jnp.where(number > 0, jnp.maximum(draws, 1), 0)
    lots = jnp.where(present, jax.random.uniform(choice, (batch, length)), 2.0)
    places = jnp.argsort(jnp.argsort(lots, axis=1), axis=1)
    drawn = present & (places < draws[:, None])
    chosen = maskable & jnp.take_along_axis(drawn, jnp.where(maskable, words, 0), axis=1)

    if variant == "mask":
        hidden = jnp.full_like(tokens, mask_id)
    elif variant == "80-10-10":
        die = jax.random.uniform(fate, tokens.shape)
        random = jax.random.randint(substitute, tokens.shape, specials, vocabulary, tokens.dtype)
        hidden = jnp.where(die < 0.8, mask_id, jnp.where(die < 0.9, random, tokens))
    else:
        raise ValueError(f'variant {variant!r} is neither "mask" nor "80-10-10"')
    return jnp.where(chosen, hidden, tokens), chosen


def gather_chosen(chosen: Bool[Array, "batch length"], limit: int) -> Gathered:
    """List the chosen positions, so that logits are computed for them alone.

    `limit` is static and should exceed the expected number, `mask_rate · batch · length`: chosen
    positions past the limit, in row order, are dropped and counted.
    """
    flat = chosen.reshape(-1)
    (indices,) = jnp.nonzero(flat, size=limit, fill_value=0)
    total = flat.sum()
    valid = jnp.arange(limit) < total
    return Gathered(indices, valid, jnp.maximum(total - limit, 0))


def masked_language_loss(
    logits: Float[Array, "positions vocabulary"],
    targets: Int[Array, " positions"],
    where: Bool[Array, " positions"],
) -> tuple[Float[Array, ""], Mapping[str, Array]]:
    """Return the cross-entropy of the hidden tokens (Devlin et al. 2019), in nats per token.

    J = − mean_{i : where_i} log softmax(logits_i)[targets_i]; 0 if nothing is hidden.

    Args:
        logits: scores of the vocabulary at the listed positions.
        targets: the original tokens at these positions.
        where: which positions count.

    Returns:
        The loss, and the metric `accuracy`.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    accuracy = masked_mean(is_highest(logits, targets), where)
    return masked_mean(losses, where), {"accuracy": accuracy}
