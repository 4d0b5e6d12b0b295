"""The tables of published results, one a module, and the README's copies of them."""
