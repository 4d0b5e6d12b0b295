"""Texts of the bazaar: products, reviews and questions, composed out of its words."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

from metaguide.data.bazaar_words import (
    AGREEMENTS,
    CHOICES,
    CLOSERS,
    COLOURS,
    CONTRASTS,
    FILLERS,
    LANGUAGES,
    MATERIALS,
    MILD,
    NEGATIONS,
    SHARED_ASPECTS,
    SHARED_ATTRIBUTES,
    SHARED_CARRIERS,
    SHARED_SENTIMENT,
    SHARED_TASTES,
    STATEMENTS,
    STRONG,
    Attribute,
    Vocabulary,
)

T = TypeVar("T")

Sides = tuple[tuple[str, ...], tuple[str, ...]]
"""Words of blame and words of praise: by number, 0 and 1."""


class Knobs(Protocol):
    """The settings of the bazaar that texts depend on."""

    @property
    def shared(self) -> float: ...  # noqa: D102
