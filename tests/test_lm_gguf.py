"""GGUF files: the same weights give the same logits, codes are kept where a format has them, clear errors."""

import json

import gguf
import lm_checkpoints as lm
import numpy as np
import pytest
from bitsmith.compiler.errors import BitsmithError, InternalError, ModelError, UnsupportedError
from bitsmith.compiler.formats import decode
from bitsmith.compiler.frontends.language.gguf_file import open_gguf
from bitsmith.compiler.frontends.language.model import load_language_model
from bitsmith.compiler.reference import run_reference
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

GEMMA3 = {"layer_types": ["sliding_attention"] * 3}  # llama.cpp: all but each sixth
QWEN2 = {"use_sliding_window": False}
CHANGES = {"gemma3": GEMMA3, "qwen2": QWEN2}
TEXT = (
    "In 1984, 12345 people lived in the town's old houses.  They'd said:\n\n\"Hello\" \t and we'll go!\n"
    "def f(x):\n    return x ** 2  # naïve über 漢字 \N{SLIGHTLY SMILING FACE}\n"
)


def model_of(kind):
    more = {"mlp_bias": False} if kind == "llama-3" else {}  # llama.cpp has none
    return lm.random_model(lm.config_of(kind, **CHANGES.get(kind, {}), **more))


def run(path, ids):
    return run_reference(load_language_model(path).graph_whole(len(ids)), {"tokens": ids})["logits"]


@pytest.mark.parametrize("kind", lm.CONFIGS)
def test_the_same_weights_give_the_same_logits(kind, tmp_path):
    model = model_of(kind)
    expected = lm.logits(model, lm.tokens())
    found = run(lm.write_gguf(tmp_path / "model.gguf", model), lm.tokens())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_1", "Q8_0"])
def test_quantised_tensors_are_what_the_package_decodes(kind, tmp_path):
    model = model_of("llama")
    path = lm.write_gguf(tmp_path / "model.gguf", model, kind)
    loaded = load_language_model(path)
    reader = gguf.GGUFReader(path)
    tensors = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    np.testing.assert_array_equal(
        loaded.weights["model.embed_tokens.weight"].array(), tensors["token_embd.weight"]
    )
    halves = tensors["blk.1.attn_k.weight"].reshape(2, 8, 2, 64).swapaxes(1, 2).reshape(32, 64)
    np.testing.assert_array_equal(loaded.weights["model.layers.1.self_attn.k_proj.weight"].array(), halves)


@pytest.mark.parametrize(("kind", "name"), [("Q4_0", "int4:32"), ("Q8_0", "int8:32")])
def test_codes_are_kept(kind, name, tmp_path):
    loaded = load_language_model(lm.write_gguf(tmp_path / "model.gguf", model_of("qwen3"), kind))
    for layer in ("model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj", "lm_head"):
        coded = loaded.codes(layer)
        weight = "model.embed_tokens" if layer == "lm_head" else layer
        assert coded is not None and str(coded.format) == name
        np.testing.assert_array_equal(decode(coded), loaded.weights[f"{weight}.weight"].array())
    assert loaded.codes("model.norm") is None and loaded.codes("nothing") is None


def test_codes_of_llama_follow_its_rows(tmp_path):
    loaded = load_language_model(lm.write_gguf(tmp_path / "model.gguf", model_of("llama"), "Q4_0"))
    layer = "model.layers.1.self_attn.q_proj"
    np.testing.assert_array_equal(decode(loaded.codes(layer)), loaded.weights[f"{layer}.weight"].array())


def test_offsets_that_are_no_multiple_of_the_step_are_not_kept(tmp_path):
    """Q4_1 has a float16 offset, int4a a whole number of steps."""
    model = model_of("llama")
    loaded = load_language_model(lm.write_gguf(tmp_path / "random.gguf", model, "Q4_1"))
    assert loaded.codes("model.layers.0.mlp.up_proj") is None
    steps = np.random.default_rng(0).integers(-5, 11, (96, 64)).astype(np.float32)
    steps[:, ::32], steps[:, 1::32] = -5, 10
    model.model.layers[0].mlp.up_proj.weight.data[:] = model.lm_head.weight.new_tensor(steps / 64)
    loaded = load_language_model(lm.write_gguf(tmp_path / "whole.gguf", model, "Q4_1"))
    coded = loaded.codes("model.layers.0.mlp.up_proj")
    assert str(coded.format) == "int4a:32"
    np.testing.assert_array_equal(decode(coded), steps / 64)


def test_scores_of_large_gemmas_are_scaled_by_width(tmp_path):
    """As llama.cpp does for the models of 46 and 62 blocks; the files do not say it."""
    config = lm.config_of("gemma2", num_hidden_layers=46)
    path = lm.write_gguf(tmp_path / "model.gguf", lm.random_model(config), **{"gemma2.attention.scale": None})
    assert load_language_model(path).config.attention_scale == (64 / 4) ** -0.5
    path = lm.write_gguf(tmp_path / "small.gguf", model_of("gemma2"), **{"gemma2.attention.scale": None})
    assert load_language_model(path).config.attention_scale == 32**-0.5


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = lm.write_gguf(tmp_path / "model.gguf", model_of("llama"), "Q4_0")
    whole = path.read_bytes()
    for size in (*range(0, 1500, 97), 3000, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"model\.gguf"):
            load_language_model(path)
    path.write_bytes(whole[:4] + (1).to_bytes(4, "little") + whole[8:])
    with pytest.raises(UnsupportedError, match="GGUF version 1"):
        load_language_model(path)


def test_a_tensor_that_vanishes_while_open(tmp_path):
    path = lm.write_gguf(tmp_path / "model.gguf", model_of("llama"))
    loaded = load_language_model(path)
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(ModelError, match="has changed"):
        loaded.weights["model.layers.2.mlp.down_proj.weight"].array()


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"llama.rope.scaling.type": "longrope"}, UnsupportedError, "scaling 'longrope'"),
        ({"llama.block_count": 4}, ModelError, "lacks model.layers.3"),
        ({"llama.attention.head_count": [4, 4, 2]}, UnsupportedError, "differs between layers"),
        ({"llama.context_length": None}, ModelError, "llama.context_length is None"),
        ({"llama.block_count": 2**30}, ModelError, "must be a whole number, 1 to 4096"),
        ({"llama.rope.dimension_count": 32}, ModelError, "turns more features than 4 heads of 16"),
        ({"llama.attention.head_count_kv": 3}, ModelError, "do not go with 3 heads"),
        ({"llama.attention.value_length": 32}, UnsupportedError, "different sizes"),
    ],
)
def test_metadata_that_does_not_fit(more, error, says, tmp_path):
    path = lm.write_gguf(tmp_path / "model.gguf", model_of("llama"), **more)
    with pytest.raises(error, match=says):
        load_language_model(path)


def test_another_architecture(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    with pytest.raises(UnsupportedError, match="'mamba' is not supported; llama, qwen2"):
        load_language_model(tmp_path / "other.gguf")
    assert list(open_gguf(tmp_path / "other.gguf").tensors) == ["token_embd.weight"]


def byte_level():
    """A small tokenizer as SmolLM's: single digits, then GPT-2's expression, then bytes."""
    tokenizer = Tokenizer(models.BPE())
    digits, level = (
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        initial_alphabet=alphabet,
        special_tokens=["<|end|>", "<|begin|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


def written_tokenizer(path, tokenizer, **more):
    data = json.loads(tokenizer.to_str())["model"]
    names = [name for name, _ in sorted(data["vocab"].items(), key=lambda item: item[1])]
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(names) - 2),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in data["merges"]],
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.chat_template": "{{ messages }}",
    }
    return lm.write_gguf(path, model_of("llama"), **fields | more)


@pytest.mark.parametrize("bos", [None, True])
def test_a_byte_level_tokenizer(bos, tmp_path):
    source = byte_level()
    more = {"tokenizer.ggml.add_bos_token": bos}
    model = load_language_model(written_tokenizer(tmp_path / "m.gguf", source, **more))
    made = Tokenizer.from_str(model.tokenizer)
    for text in (TEXT, f"<|begin|>{TEXT}<|end|>", " a", ""):
        assert made.encode(text, add_special_tokens=False).ids == source.encode(text).ids
        assert made.encode(text).ids == [1] * bool(bos) + source.encode(text).ids
    ids = made.encode(TEXT, add_special_tokens=False).ids
    assert made.decode(ids) == TEXT and model.adds_bos is bool(bos)
    assert (model.config.bos, model.config.eos) == (1, (0,))
    assert model.checkpoint.template == "{{ messages }}"


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_tokenizer(prefix, tmp_path):
    """Merges come back from scores; what no piece covers becomes bytes."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=special, show_progress=False)
    trained.train_from_iterator([TEXT], trainer)
    names = [trained.id_to_token(i) for i in range(trained.get_vocab_size())]
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.scores": [-float(i) for i in range(len(names))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(names) - 259),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    model = load_language_model(lm.write_gguf(tmp_path / "m.gguf", model_of("llama"), **fields))
    made = Tokenizer.from_str(model.tokenizer)
    text = "In the town we said Hello"
    plain = made.encode(text, add_special_tokens=False).ids
    assert plain == trained.encode(" " * prefix + text).ids
    assert made.encode(text).ids == [1, *plain] and model.adds_bos
    odd = made.encode("Ω</s>", add_special_tokens=False)
    assert odd.ids[-3:] == [3 + 0xCE, 3 + 0xA9, 2]
    assert made.decode(made.encode(TEXT).ids) == TEXT


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"tokenizer.ggml.model": "t5"}, UnsupportedError, "kind 't5'"),
        ({"tokenizer.ggml.pre": "tekken"}, UnsupportedError, r"\('tekken'\) is not known"),
        ({"tokenizer.ggml.merges": None}, ModelError, "does not fit together"),
    ],
)
def test_tokenizers_that_are_not_known(more, error, says, tmp_path):
    model = load_language_model(written_tokenizer(tmp_path / "m.gguf", byte_level(), **more))
    with pytest.raises(error, match=says):
        _ = model.tokenizer


def test_no_tokenizer(tmp_path):
    model = load_language_model(lm.write_gguf(tmp_path / "model.gguf", model_of("llama")))
    assert model.tokenizer is None and not model.adds_bos


def test_damaged_bytes_give_our_errors_or_a_model(tmp_path):
    """Any number in the header may be wrong: nothing but our own errors, and no memory for absurd sizes."""
    path = written_tokenizer(tmp_path / "m.gguf", byte_level())
    whole, rng = path.read_bytes(), np.random.default_rng(4)
    header = open_gguf(path).tensors["token_embd.weight"].offset
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(header, 2500), 3):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            model = load_language_model(path, context=16)
            _ = model.tokenizer, model.graph(1, 1)
        except BitsmithError as error:
            assert not isinstance(error, InternalError), error
            refused += 1
    assert 30 < refused < 150
