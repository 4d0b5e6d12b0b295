"""Writes what PyTorch `transformers` computes with the small encoders of the tests.

python tests/pretrained/reference.py
"""

import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("transformers.json")


def computed(folder: Path, texts: tuple[str, ...]) -> dict[str, list]:
    """Return {"tokens", "states"} of each text, padded in one batch and cut to what is real.

    The states of the last text are left out, which keeps the file small.
    """
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import (  # pyright: ignore[reportMissingImports]
        AutoModel,
        PreTrainedTokenizerFast,
    )

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), split_special_tokens=True
    )
    config = json.loads((folder / "config.json").read_text())
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokens = [tokenizer(text)["input_ids"] for text in texts]
    ids = torch.full((len(texts), max(map(len, tokens))), config["pad_token_id"])
    mask = torch.zeros_like(ids)
    for row, own in enumerate(tokens):
        ids[row, : len(own)] = torch.tensor(own)
        mask[row, : len(own)] = 1
    with torch.inference_mode():
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
    kept = [states[row, : len(own)] for row, own in enumerate(tokens)]
    return {"tokens": tokens, "states": [np.round(own, 5).tolist() for own in kept[:-1]]}


if __name__ == "__main__":
    spec = importlib.util.spec_from_file_location("small", Path(__file__).with_name("conftest.py"))
    small = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(small)
    with tempfile.TemporaryDirectory() as root:
        found = {
            name: computed(small.write(Path(root) / name, name), small.TEXTS)
            for name in small.VARIANTS
        }
    FILE.write_text(json.dumps(found) + "\n")
    print(f"{FILE}: {FILE.stat().st_size} bytes", file=sys.stderr)
