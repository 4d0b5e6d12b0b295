"""Catalogues of products, reviews, questions and interactions, and their readers."""
