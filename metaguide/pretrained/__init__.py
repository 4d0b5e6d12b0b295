"""Pretrained encoders of the BERT family, read from a local Hugging Face folder.

`load_encoder` reads one, and its `encode` makes vectors of texts; `cached_vectors` keeps them on
disk. It needs `pip install 'metaguide[guide]'`.
"""

from metaguide.pretrained.encoder import PretrainedEncoder, load_encoder
from metaguide.pretrained.folder import EncoderError

__all__ = ["EncoderError", "PretrainedEncoder", "load_encoder"]
