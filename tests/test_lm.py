"""Language models from directories: equal to `transformers`, in one pass and through caches; clear errors."""

import json
import shutil

import lm_checkpoints as lm
import numpy as np
import pytest
from bitsmith.compiler.errors import InputError, ModelError, UnsupportedError
from bitsmith.compiler.frontends.language.model import load_language_model
from bitsmith.compiler.plan import layers_of
from bitsmith.compiler.reference import run_reference
from bitsmith.passes.prepare import prepare
from safetensors.torch import load_file, save_file

CHUNK = 8


def departure(found, expected):
    """The largest error as a share of the largest number."""
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.fixture(scope="module", params=lm.CONFIGS)
def saved(request, tmp_path_factory):
    """A checkpoint's directory and its logits by torch."""
    model = lm.random_model(lm.config_of(request.param))
    place = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(place)
    return place, lm.logits(model, lm.tokens())


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    place = tmp_path_factory.mktemp("llama")
    lm.random_model(lm.config_of("llama")).save_pretrained(place)
    return place


@pytest.fixture
def copy(llama, tmp_path):
    """A Llama that a test may damage."""
    return shutil.copytree(llama, tmp_path / "model")


def change(place, **changes):
    """Sets entries of config.json; None takes one out."""
    data = json.loads((place / "config.json").read_text()) | changes
    data = {key: value for key, value in data.items() if value is not None}
    (place / "config.json").write_text(json.dumps(data))


def test_a_whole_text_has_the_logits_of_transformers(saved):
    place, expected = saved
    graph = load_language_model(place).graph_whole(lm.TOKENS)
    assert departure(run_reference(graph, {"tokens": lm.tokens()})["logits"], expected) <= 1e-4


def test_chunks_and_tokens_through_caches_give_the_same(saved):
    place, expected = saved
    model = load_language_model(place, context=64, cache="float32")
    ids = lm.tokens()
    first, last = model.graph(CHUNK, CHUNK), model.graph(1, 1)
    assert first.states == last.states and first.fed[0][0] == "tokens"
    feed = {"tokens": ids[:CHUNK], "position": np.array([0]), "rows": np.arange(CHUNK)}
    made = run_reference(first, feed)
    assert departure(made["logits"], expected[:CHUNK]) <= 1e-4
    for t in range(CHUNK, lm.TOKENS):
        kept = {before: made[after] for before, after in first.states}
        feed = {"tokens": ids[t : t + 1], "position": np.array([t]), "rows": np.array([0])}
        made = run_reference(last, feed | kept)
        assert departure(made["logits"], expected[t : t + 1]) <= 1e-4


def test_preparing_changes_nothing_but_reads_no_layer(saved):
    place, expected = saved
    graph = prepare(load_language_model(place).graph_whole(lm.TOKENS))
    held = [node.name for node in layers_of(graph) if isinstance(graph.stored[node.inputs[1]], np.ndarray)]
    assert len(layers_of(graph)) == 7 * 3 + 1 and not held
    assert departure(run_reference(graph, {"tokens": lm.tokens()})["logits"], expected) <= 1e-4


@pytest.mark.parametrize("cache", ["float16", "int8"])
def test_small_caches_cost_little(llama, cache):
    exact, small = (load_language_model(llama, context=32, cache=c) for c in ("float32", cache))
    feed = {"tokens": lm.tokens(), "position": np.array([0]), "rows": np.array([lm.TOKENS - 1])}
    want, found = (run_reference(m.graph(lm.TOKENS, 1), feed)["logits"] for m in (exact, small))
    assert 0 < np.abs(found - want).max() < (0.01 if cache == "float16" else 0.1) * np.abs(want).max()


def test_graphs_share_layers_and_weights(llama):
    model = load_language_model(llama, context=40)
    graphs = [*model.graphs(), model.graph_whole(9)]
    names = [sorted((n.name, n.inputs[1]) for n in layers_of(graph)) for graph in graphs]
    assert all(each == names[0] for each in names[1:])
    assert ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.q_proj.weight") in names[0]
    assert [g.type_of("tokens").shape for g in graphs] == [(1,), (40,), (40,), (9,)]
    assert all(g.stored["lm_head.weight"] is model.weights["lm_head.weight"] for g in graphs)


def test_bfloat16_shards_are_read_as_float32(llama, copy):
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: weights[name].bfloat16() for name in part}, copy / file)
    places = {name: file for file, part in shards.items() for name in part}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    model = load_language_model(copy)
    for name, stored in model.weights.items():
        assert stored.array().dtype == np.float32
        np.testing.assert_array_equal(stored.array(), weights[name].bfloat16().float().numpy())
    (copy / "b.safetensors").unlink()
    with pytest.raises(ModelError, match=r"b\.safetensors is missing"):
        load_language_model(copy)


def test_an_old_config_says_rope_and_window_in_its_way(copy):
    scaling = {"type": "linear", "factor": 2.0}
    change(copy, rope_parameters=None, rope_theta=10000.0, rope_scaling=scaling)
    graph = load_language_model(copy).graph_whole(lm.TOKENS)
    found = graph.params["rope.cos"]
    angles = np.outer(np.arange(lm.TOKENS), 10000.0 ** (-np.arange(0, 16, 2) / 16)) / 2
    np.testing.assert_allclose(found, np.cos(angles), atol=1e-5)


def test_gemma_3_of_a_model_for_pictures_too(tmp_path):
    config = lm.config_of("gemma3")
    model = lm.random_model(config)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    moved = {f"language_model.{name}": w for name, w in weights.items()}
    moved["vision_tower.weight"] = weights["model.norm.weight"].clone()
    save_file(moved, tmp_path / "model.safetensors")
    data = json.loads((tmp_path / "config.json").read_text())
    outer = {"model_type": "gemma3", "text_config": data, "eos_token_id": [1, 106]}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    loaded = load_language_model(tmp_path)
    assert loaded.config.eos == (1, 106)
    found = run_reference(loaded.graph_whole(lm.TOKENS), {"tokens": lm.tokens()})["logits"]
    assert departure(found, lm.logits(model, lm.tokens())) <= 1e-4


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"model_type": "mamba"}, UnsupportedError, "type 'mamba' are not supported; llama, mistral"),
        ({"rope_parameters": {"rope_type": "longrope"}}, UnsupportedError, "scaling 'longrope'"),
        ({"rope_scaling": {"type": "yarn"}, "rope_parameters": None}, ModelError, "needs factor"),
        ({"rope_scaling": {"type": "dynamic"}, "rope_parameters": None}, UnsupportedError, "'dynamic'"),
        ({"rope_parameters": {"rope_type": "linear"}}, ModelError, "needs factor"),
        ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedError, "codes already"),
        ({"hidden_act": "mish"}, UnsupportedError, "activation 'mish'"),
        ({"hidden_size": None}, ModelError, "hidden_size is None"),
        ({"num_hidden_layers": 5}, ModelError, "lacks model.layers.3"),
        ({"num_hidden_layers": 2}, ModelError, "which a llama of this configuration does not read"),
        ({"intermediate_size": 97}, ModelError, r"has shape \[96, 64\], and \[97, 64\]"),
        ({"num_key_value_heads": 3}, ModelError, "4 heads"),
        ({"num_hidden_layers": 10**9}, ModelError, "num_hidden_layers is 1000000000"),
        ({"head_dim": 10**9}, ModelError, "head_dim is 1000000000"),
        ({"rope_parameters": ["default"]}, ModelError, "must be an object"),
        ({"rope_parameters": None, "rope_theta": "10000"}, ModelError, "rope_theta is '10000'"),
        ({"rope_parameters": lm.LLAMA3 | {"high_freq_factor": 1.0}}, ModelError, "are equal"),
        ({"eos_token_id": "</s>"}, ModelError, "eos_token_id is '</s>'"),
    ],
)
def test_configs_that_do_not_fit(copy, changes, error, says):
    change(copy, **changes)
    with pytest.raises(error, match=says):
        load_language_model(copy)


def test_damaged_files(copy):
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    for kept in (len(whole) - 100, 50, 4):
        weights.write_bytes(whole[:kept])
        with pytest.raises(ModelError, match="damaged or cut short"):
            load_language_model(copy)
    weights.unlink()
    with pytest.raises(ModelError, match="neither model.safetensors nor"):
        load_language_model(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        load_language_model(copy)


@pytest.mark.parametrize("options", [{"cache": "int4"}, {"context": 0}, {"context": True}])
def test_options_that_are_none(llama, options):
    with pytest.raises(InputError):
        load_language_model(llama, **options)


def test_sizes_that_are_none(llama):
    model = load_language_model(llama, context=20)
    assert load_language_model(llama).context == 128
    with pytest.raises(InputError, match="129 tokens is asked for, but the model was made for 128"):
        load_language_model(llama, context=129)
    for tokens, rows in ((21, 1), (0, 1), (1, 0)):
        with pytest.raises(InputError, match="1 to 20 tokens"):
            model.graph(tokens, rows)
    with pytest.raises(InputError, match="at least one token"):
        model.graph_whole(0)
