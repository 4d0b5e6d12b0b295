"""One file per setting; its `get_config()` returns the config."""
