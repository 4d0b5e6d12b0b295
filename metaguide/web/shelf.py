"""The shelf: the catalogue's products by id and by words, and their pictures."""

import io
import unicodedata
from collections.abc import Sequence

from PIL import Image

from metaguide.data.catalogue import Product


class Shelf:
    """The products of a domain."""

    def __init__(self, products: Sequence[Product]):
        self._products = products
        self._rows = {one.id: row for row, one in enumerate(products)}
        self._texts = [
            tuple(map(_folded, (one.title, f"{one.id} {one.category or ''} {one.description}")))
            for one in products
        ]

    def __contains__(self, id: object) -> bool:
        """Return whether there is a product of this id."""
        return id in self._rows

    def __getitem__(self, id: str) -> Product:
        """Return the product of an id."""
        return self._products[self._rows[id]]

    def __len__(self) -> int:
        """Return the number of products."""
        return len(self._products)

    def find(self, query: str, limit: int) -> list[Product]:
        """Return the products that contain every word of a query, first those with it in the title.

        Parts of words count, since Chinese does not separate them. An empty query finds the first
        products.
        """
        words = _folded(query).split()
        first, then = [], []
        for product, (title, rest) in zip(self._products, self._texts, strict=True):
            if all(word in title for word in words):
                first.append(product)
                if len(first) == limit:
                    break
            elif len(then) < limit and all(word in title or word in rest for word in words):
                then.append(product)
        return [*first, *then][:limit]

    def picture(self, id: str) -> bytes | None:
        """Return the picture of a product as PNG; None if it has none."""
        if id not in self or (image := self[id].image) is None:
            return None
        out = io.BytesIO()
        Image.fromarray(image).save(out, "PNG")
        return out.getvalue()


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
