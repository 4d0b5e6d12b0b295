"""Catalogues of products, reviews, questions and interactions, and the readers that make them."""
