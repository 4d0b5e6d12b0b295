"""An adapted guide for servers that run neither metaguide nor JAX.

`export` writes one of its tasks into a folder, as an ONNX model or as a head for the vectors of its
pretrained encoder, and compares it with the guide first. It needs `pip install
'metaguide[export]'`. The modules `answer` and `head` are copied into the folders that they read,
and use no other module of metaguide.
"""

from metaguide.exporting.folder import FORMATS, Exported, export
from metaguide.exporting.graph import ExportError

__all__ = ["FORMATS", "ExportError", "Exported", "export"]
