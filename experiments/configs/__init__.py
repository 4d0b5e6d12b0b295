"""One file a setting; `get_config()` returns it."""
