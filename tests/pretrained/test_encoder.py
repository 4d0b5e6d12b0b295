import dataclasses
import importlib.util
import json
import shutil
import struct
import warnings
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from metaguide.data.tokenizer import TokenizerError
from metaguide.pretrained import CutTexts, EncoderError, UnknownTexts, load_encoder
from metaguide.pretrained.encoder import batches, rounded

HERE = Path(__file__).parent
EXPECTED = json.loads((HERE / "transformers.json").read_text())
TEXTS = ("The phone is good, the screen is not bad", "手机很好", "")
"""The texts of whose states `transformers.json` has the numbers."""


def module_at(path: Path):
    """The module in a file beside this one."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


small = module_at(HERE / "conftest.py")


@pytest.fixture(scope="module")
def encoder(folders):
    return load_encoder(folders("bert"), tokens_per_batch=32)


@pytest.mark.slow
@pytest.mark.parametrize("variant", sorted(EXPECTED))
def test_states_are_those_of_transformers(folders, variant: str):
    """Catches wrong positions, token types, norms, epsilon, GELU, heads, mask or kernel layout."""
    encoder = load_encoder(folders(variant))
    states, counts = encoder.states(TEXTS, np.float32)
    expected = EXPECTED[variant]["states"]
    assert counts.tolist() == [len(own) for own in expected]
    np.testing.assert_allclose(states, np.concatenate(expected), atol=1e-4)


@pytest.mark.parametrize("variant", sorted(EXPECTED))
def test_tokens_are_those_of_transformers(folders, variant: str):
    """Catches lost tokens around a text, and a "[SEP]" in a text that is read as a separator."""
    tokenizer = load_encoder(folders(variant)).tokenizer
    found = tokenizer.encode(small.TEXTS, 24)
    rows = np.split(found.tokens, np.cumsum(found.counts)[:-1])
    assert [row.tolist() for row in rows] == EXPECTED[variant]["tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("variant", sorted(EXPECTED))
def test_transformers_computes_what_is_committed(folders, variant: str):
    """Catches committed numbers that no version of transformers gives."""
    pytest.importorskip("torch", reason="PyTorch computes the numbers")
    pytest.importorskip("transformers", reason="it computes the numbers")
    found = module_at(HERE / "reference.py").computed(folders(variant), small.TEXTS)
    assert found["tokens"] == EXPECTED[variant]["tokens"]
    pairs = zip(found["states"], EXPECTED[variant]["states"], strict=True)
    for own, expected in pairs:
        np.testing.assert_allclose(own, expected, atol=3e-5)


@pytest.mark.slow
def test_a_vector_is_pooled_from_the_states(folders, encoder):
    """Catches padding in the mean, the last token instead of the first, and rows out of order."""
    texts = ["good", "the phone is not good , the screen is bad", "", "bad phone"]
    states, counts = encoder.states(texts, np.float32)
    parts = np.split(states, np.cumsum(counts)[:-1])
    np.testing.assert_allclose(encoder.encode(texts), [p.mean(0) for p in parts], atol=1e-5)
    first = dataclasses.replace(encoder, pooling="cls").encode(texts)
    np.testing.assert_allclose(first, [p[0] for p in parts], atol=1e-5)
    half = encoder.states(texts)
    assert half.states.dtype == np.float16
    np.testing.assert_allclose(half.states, states, atol=4e-3)


POOL = [" good" * count + f" {word}" for count in (0, 1, 2, 9) for word in small.WORDS[:7]]
"""Texts of four lengths, seven of each."""


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_other_texts_do_not_change_a_vector(encoder, places):
    """Catches padding that is attended to, and vectors that are not put back in order."""
    texts = [POOL[7 * place + i % 7] for i, place in enumerate(places)]
    alone = {text: vector for text, vector in zip(POOL, encoder.encode(POOL), strict=True)}
    found = encoder.encode(texts)
    np.testing.assert_allclose(found, [alone[text] for text in texts], atol=1e-5)


@given(st.lists(st.integers(2, 512), max_size=200), st.sampled_from([1, 100, 512, 4096]))
def test_batches_hold_every_text_once(counts, tokens):
    """Catches lost or doubled texts, rows too short for them, and batches above the limit."""
    counts = np.array(counts, np.int32)
    found = list(batches(counts, tokens, 512))
    rows = np.concatenate([np.zeros(0, int), *(batch.rows for batch in found)])
    assert sorted(rows) == list(range(len(counts)))
    for batch in found:
        longest = counts[batch.rows].max()
        assert longest <= batch.length <= 512 and len(batch.rows) <= batch.size
        assert batch.size * batch.length <= max(tokens, batch.length)
        assert counts[batch.rows].min() * 2 + 64 >= batch.length


def test_few_lengths_are_compiled():
    """Catches a program for every length, and rows of which more than a quarter is padding."""
    counts = np.arange(1, 513)
    lengths = rounded(counts)
    assert (lengths >= counts).all() and len(set(lengths.tolist())) <= 24
    assert (lengths[16:] <= 1.25 * counts[16:]).all()


def test_empty_and_long_texts(encoder):
    """Catches an error or NaN over nothing, a silent cut, and a cut that loses the last [SEP]."""
    assert encoder.encode([]).shape == (0, 16)
    assert encoder.states([]).states.shape == (0, 16)
    long = "good " * 100
    with pytest.warns(CutTexts, match="1 of 2 texts are longer than 24 tokens"):
        found = encoder.encode([long, ""])
    assert np.isfinite(found).all()
    tokens = encoder.tokenize([long])
    assert tokens.counts == 24 and tokens.is_cut.all() and tokens.tokens[-1] == 3


@pytest.mark.parametrize("variant", ["bert", "e5"])
def test_texts_of_another_language_are_counted(folders, variant):
    """Faults: an unknown script is answered in silence; the prefix, which is known, hides it; a
    known text with a few unknown pieces counts; an empty text does."""
    encoder = load_encoder(folders(variant), prefix="phone: ")
    with pytest.warns(UnknownTexts, match="2 of 4 texts are mostly of pieces that"):
        encoder.encode(["ห้องสกปรกมาก", "good phone is good ห้อง", "", "ดีเยี่ยม"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode(["good", ""])


def test_the_prefix_is_read(folders, encoder):
    """Catches a prefix that is kept and not used, or used twice."""
    prefixed = load_encoder(folders("bert"), prefix="good: ")
    a, b = prefixed.tokenize(["phone"]), encoder.tokenize(["good: phone"])
    assert a.tokens.tolist() == b.tokens.tolist()


def test_half_a_character_is_named(encoder):
    """Catches an error of the tokenizer's library that does not say which text."""
    with pytest.raises(TokenizerError, match="text 1 has half of a surrogate pair at character 2"):
        encoder.encode(["good", "ab\ud800"])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_weights_of_half_the_size_are_widened(tmp_path, folders, dtype):
    """Catches half-precision weights that are refused, or computed with as they are."""
    whole = load_encoder(folders("bert")).params
    half = load_encoder(small.write(tmp_path / "half", "bert", dtype)).params
    expected = np.asarray(whole["layer_1"]["qkv"]["kernel"]).astype(dtype).astype(np.float32)
    found = half["layer_1"]["qkv"]["kernel"]
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_bfloat16_computes_nearly_the_same(folders, encoder):
    """Catches an option that changes nothing, and norms or sums in eight bits."""
    texts = ["the phone is good", "bad screen"]
    half = load_encoder(folders("bert"), dtype=jnp.bfloat16).encode(texts)
    whole = encoder.encode(texts)
    assert half.dtype == np.float32
    assert 1e-5 < np.abs(half - whole).max() < 0.05


def test_older_names_of_norms_are_read(tmp_path, folders):
    """Catches a checkpoint that was converted from TensorFlow, taken for another encoder."""
    path = small.write(tmp_path / "older", "bert")
    weights = load_file(path / "model.safetensors")
    older = {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): value
        for name, value in weights.items()
    }
    save_file(older, path / "model.safetensors")
    found, expected = load_encoder(path).params, load_encoder(folders("bert")).params
    np.testing.assert_array_equal(found["norm"]["scale"], expected["norm"]["scale"])


def test_pooling_of_sentence_transformers_is_read(tmp_path):
    """Catches the mean where an encoder was trained for its first token, and a guess at others."""
    path = small.write(tmp_path / "bge", "bert")
    (path / "1_Pooling").mkdir()
    file = path / "1_Pooling" / "config.json"
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    file.write_text(json.dumps({"word_embedding_dimension": 16, **modes}))
    assert load_encoder(path).pooling == "cls"
    assert load_encoder(path, pooling="mean").pooling == "mean"
    file.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(EncoderError, match="pools by pooling_mode_max_tokens; give pooling="):
        load_encoder(path)
    assert load_encoder(path, pooling="mean").pooling == "mean"


def change_config(**fields):
    """What changes fields of a folder's configuration."""

    def change(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, **fields}))

    return change


def change_tensor(name: str, value):
    """What changes a tensor, or leaves it out."""

    def change(path: Path) -> None:
        weights = load_file(path / "model.safetensors")
        weights.pop(name)
        if value is not None:
            weights[name] = value
        save_file(weights, path / "model.safetensors")

    return change


def cut(name: str, share: float):
    """What keeps the beginning of a file."""

    def change(path: Path) -> None:
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[: int(share * len(content))])

    return change


def more_pieces(path: Path) -> None:
    core = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    core.add_tokens([f"more{number}" for number in range(9)])
    core.save(str(path / "tokenizer.json"))


def nothing_around(path: Path) -> None:
    content = json.loads((path / "tokenizer.json").read_text())
    (path / "tokenizer.json").write_text(json.dumps({**content, "post_processor": None}))


def renamed(name: str, to: str):
    return lambda path: (path / name).rename(path / to)


def pointer(path: Path) -> None:
    (path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid 1\n")


def endless_header(path: Path) -> None:
    (path / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")


BIAS, EMBEDDING = "encoder.layer.1.output.dense.bias", "embeddings.word_embeddings.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (shutil.rmtree, "there is no such folder; give the folder of an encoder"),
        (renamed("config.json", "other.json"), "there is no config.json here; fetch"),
        (renamed("tokenizer.json", "vocab.txt"), "there is no tokenizer.json here; write it with"),
        (renamed("model.safetensors", "model.bin"), "model.safetensors here; weights in pickles"),
        (renamed("model.safetensors", "model.safetensors.index.json"), "weights in several parts"),
        (cut("model.safetensors", 0.9), "damaged, or an incomplete download .*; fetch"),
        (cut("model.safetensors", 0), "damaged, or an incomplete download .*; fetch"),
        (endless_header, "damaged, or an incomplete download .*; fetch"),
        (pointer, "a pointer of Git LFS, not the weights"),
        (cut("tokenizer.json", 0.5), "tokenizer.json: not a readable .* incomplete download"),
        (cut("config.json", 0.5), "config.json: not JSON: .*; fetch"),
        (nothing_around, "tokenizer.json: it puts no token before a text"),
        (more_pieces, r"ids up to \d+, but the embedding has \d+ rows"),
        (change_config(model_type="gpt2"), "model_type is 'gpt2'; .* bert, roberta, xlm-roberta"),
        (change_config(model_type=["bert"]), r"model_type is \['bert'\]"),
        (change_config(hidden_act="relu"), "hidden_act is 'relu'; only 'gelu' is supported"),
        (change_config(position_embedding_type="relative_key"), "position_embedding_type is"),
        (change_config(hidden_size="16"), "hidden_size is '16'; it must be a whole number >= 1"),
        (change_config(num_attention_heads=3), "hidden_size 16 is not a multiple of .* 3"),
        (change_config(layer_norm_eps=0), "layer_norm_eps is 0; it must be between 0 and 1"),
        (change_config(pad_token_id=99), "pad_token_id 99 is not below vocab_size"),
        (change_config(max_position_embeddings=2), "max_position_embeddings 2 holds no text"),
        (change_config(max_position_embeddings=99), r"is \[24, 16\], but .* requires \[99, 16\]"),
        (change_config(num_hidden_layers=3), "there is no tensor encoder.layer.2"),
        (change_tensor(BIAS, None), f"there is no tensor {BIAS}"),
        (change_tensor(BIAS, np.zeros(3, np.float32)), rf"{BIAS} is \[3\], but .* requires \[16\]"),
        (change_tensor(BIAS, np.zeros(16, np.int8)), f"{BIAS} is int8; quantised weights"),
        (change_tensor(BIAS, np.full(16, np.nan, np.float32)), f"{BIAS} has values .* not finite"),
    ],
)  # fmt: skip
def test_bad_folder_is_named(tmp_path, change, said: str):
    """Catches a folder that is read wrongly, or an error that names neither file nor mend."""
    path = small.write(tmp_path / "folder", "bert")
    change(path)
    with pytest.raises(EncoderError, match=said) as error:
        load_encoder(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"length": 2}, "length is 2; give 3 to 24"),
        ({"length": 25}, "length is 25; give 3 to 24"),
        ({"dtype": jnp.float16}, "dtype is float16; give float32 or bfloat16"),
        ({"tokens_per_batch": 0}, "tokens_per_batch is 0"),
    ],
)
def test_bad_argument_is_named(folders, arguments, said: str):
    """Catches an argument that fails in the middle of an encoding, or not at all."""
    with pytest.raises(ValueError, match=said):
        load_encoder(folders("bert"), **arguments)
