"""Tables: how rows are laid out, and the README's copies of them."""
