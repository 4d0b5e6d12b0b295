# What ml_collections leaves untyped: the fields of a config are whatever its file says.
from ml_collections import config_dict as config_dict
from ml_collections import config_flags as config_flags
from ml_collections.config_dict import ConfigDict as ConfigDict
from ml_collections.config_dict import FrozenConfigDict as FrozenConfigDict
