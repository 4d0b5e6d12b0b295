"""Pretrained encoders of the BERT family, read from a local Hugging Face folder.

`load_encoder` reads one, its `encode` turns texts into vectors, and `cached_vectors` caches these
on disk. `tuned_encoder` makes it the encoder of a guide, which trains it in part. The package needs
`pip install 'metaguide[guide]'`.
"""

from metaguide.pretrained.encoder import (
    CutTexts,
    PretrainedEncoder,
    States,
    UnknownTexts,
    load_encoder,
)
from metaguide.pretrained.folder import EncoderError, copy_encoder, is_encoder
from metaguide.pretrained.tuned import tuned_encoder, tuned_params
from metaguide.pretrained.vector_cache import (
    CacheFault,
    Vectors,
    cached_states,
    cached_vectors,
    remembered,
    vector_reader,
)

__all__ = [
    "CacheFault",
    "CutTexts",
    "EncoderError",
    "PretrainedEncoder",
    "States",
    "UnknownTexts",
    "Vectors",
    "cached_states",
    "cached_vectors",
    "copy_encoder",
    "is_encoder",
    "load_encoder",
    "remembered",
    "tuned_encoder",
    "tuned_params",
    "vector_reader",
]
