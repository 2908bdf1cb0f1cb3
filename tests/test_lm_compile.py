"""Checkpoints of language models to artifacts: the library, the command line, what is kept of the model."""

import json

import bitsmith
import lm_checkpoints as lm
import numpy as np
import pytest
from bitsmith.compiler.cli import main
from bitsmith.compiler.errors import InputError, ModelError
from bitsmith.compiler.frontends.language.model import LanguageModel
from bitsmith.compiler.pipeline.coding import text_runs
from bitsmith.compiler.pipeline.language_models import kept_plan
from bitsmith.compiler.pipeline.models import cross_compile
from bitsmith.compiler.plan import Plan
from bitsmith.compiler.reference import run_reference
from tokenizers import Tokenizer, models, processors

CONTEXT = 24


def tokenizer():
    """A token for each number, and 0 in front of every text."""
    table = {str(i): i for i in range(lm.VOCABULARY)}
    made = Tokenizer(models.WordLevel(table, unk_token="0"))
    made.post_processor = processors.TemplateProcessing(single="0 $A", special_tokens=[("0", 0)])
    return made


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A directory with a tokenizer, and of its model the logits by torch and the number of parameters."""
    model = lm.random_model(lm.config_of("gemma2", bos_token_id=0, eos_token_id=[3, 5]))
    place = tmp_path_factory.mktemp("gemma2")
    model.save_pretrained(place)
    tokenizer().save(str(place / "tokenizer.json"))
    return place, lm.logits(model, lm.tokens()), model.num_parameters()


@pytest.fixture(scope="module")
def q4_0(tmp_path_factory):
    """A Llama of Q4_0 codes."""
    model = lm.random_model(lm.config_of("llama", tie_word_embeddings=True))
    return lm.write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf", model, "Q4_0")


def test_every_entry_of_an_artifact_equals_transformers(checkpoint):
    place, expected, _ = checkpoint
    model = bitsmith.load(place, context=CONTEXT)
    assert isinstance(model, LanguageModel)
    ids, atol = lm.tokens(), 1e-4 * np.abs(expected).max()
    with bitsmith.compile(model) as artifact:
        chunk = np.zeros(CONTEXT, np.int64)
        chunk[: lm.TOKENS] = ids
        start, rows = np.array([0]), np.arange(CONTEXT)
        scored = artifact.run(tokens=chunk, position=start, rows=rows)["logits"]
        np.testing.assert_allclose(scored[: lm.TOKENS], expected, rtol=0, atol=atol)
        artifact.reset()
        last = artifact.run(tokens=chunk, position=start, rows=np.array([9]))["logits"]
        np.testing.assert_allclose(last, expected[9:10], rtol=0, atol=atol)
        for t in range(10, lm.TOKENS):  # goes on, over what the padding wrote
            one = artifact.run(tokens=ids[t : t + 1], position=np.array([t]), rows=np.array([0]))
            np.testing.assert_allclose(one["logits"], expected[t : t + 1], rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("asked", "choice", "kept"),
    [
        (None, None, "float32"),
        (None, "float32", "float32"),
        (None, "int4:32", "float16"),
        ("float32", "int4:32", "float32"),
        ("float16", None, "float16"),
        ("int8", None, "int8"),
    ],
)
def test_caches_are_exact_until_the_model_is_compressed(q4_0, tmp_path, asked, choice, kept):
    model = bitsmith.load(q4_0, context=CONTEXT, cache=asked)
    plan = None if choice is None else bitsmith.Plan.uniform(model.graph(1, 1), choice)
    made = cross_compile(model, tmp_path / "made", target="host", plan=plan)
    with bitsmith.open(made) as artifact:
        types = {state.dtype for state in artifact.states if not state.name.endswith(".scale")}
    assert types == {kept}


def test_the_command_line_writes_what_generating_needs(checkpoint, tmp_path, capsys):
    place = checkpoint[0]
    out = tmp_path / "made"
    with pytest.raises(SystemExit) as end:
        main(["compile", str(place), "-o", str(out), "--context", str(CONTEXT), "--cache", "int8", "--json"])
    assert not end.value.code
    said = json.loads(capsys.readouterr().out)
    assert said["artifact"]["language"]["context"] == CONTEXT and said["measured"] is None
    with bitsmith.open(out) as artifact:
        language = artifact.manifest.language
        assert (language.context, language.chunk, language.vocabulary) == (CONTEXT, CONTEXT, lm.VOCABULARY)
        assert (language.bos, language.eos, language.add_bos) == (0, (3, 5), True)
        sizes = [tuple(spec.shape[0] for spec in entry.inputs) for entry in artifact.entries]
        assert sizes == [(1, 1, 1), (CONTEXT, 1, 1), (CONTEXT, 1, CONTEXT)]
        assert {spec.dtype for spec in artifact.states} == {"int8", "float32"}
    assert (out / "tokenizer.json").read_text() == (place / "tokenizer.json").read_text()
    text = "".join(bitsmith.generate(out, "7 11 7", max_tokens=4))
    assert all(0 <= int(word) < lm.VOCABULARY for word in text.split())


def in_bfloat16(model):
    """The same model by torch, with the weights of its linear layers and its table, and what linear layers
    read, rounded."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            module.weight.data = module.weight.data.bfloat16().float()
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].bfloat16().float(),))
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_in_bfloat16_equals_transformers_on_rounded_numbers(tied, tmp_path):
    model = lm.random_model(lm.config_of("llama", tie_word_embeddings=tied))
    model.save_pretrained(tmp_path / "model")
    loaded = bitsmith.load(tmp_path / "model", context=CONTEXT, cache="float32")
    expected = lm.logits(in_bfloat16(model), lm.tokens())
    plan = Plan.uniform(loaded.graph(1, 1), "bfloat16")
    feed = {"position": np.array([0]), "rows": np.arange(CONTEXT)}
    with bitsmith.compile(loaded, plan=plan) as artifact, bitsmith.compile(loaded) as wide:
        sizes = [a.manifest.files["weights.bin"].bytes for a in (artifact, wide)]
        found = artifact.run(tokens=np.pad(lm.tokens(), (0, CONTEXT - lm.TOKENS)), **feed)["logits"]
        artifact.reset()
        one = artifact.run(tokens=lm.tokens()[:1], position=np.array([0]), rows=np.array([0]))["logits"]
    most = np.abs(expected).max()
    np.testing.assert_allclose(found[: lm.TOKENS], expected, rtol=0, atol=0.01 * most)
    np.testing.assert_allclose(one, expected[:1], rtol=0, atol=0.01 * most)
    assert set(plan.layers.values()) == {"bfloat16"} and sizes[0] < 0.6 * sizes[1]


def test_inspect_says_what_it_is_and_reads_no_weight(checkpoint, capsys, monkeypatch):
    place, _, parameters = checkpoint
    read = []
    monkeypatch.setattr("bitsmith.compiler.frontends.language.huggingface._read", lambda *a: read.append(a))
    info = bitsmith.inspect(bitsmith.load(place, context=CONTEXT, cache="float16"))
    with pytest.raises(SystemExit):
        main(["inspect", str(place)])
    shown = capsys.readouterr().out
    assert info.language.family in shown and "with a tokenizer" in shown and not read
    assert (info.language.blocks, info.language.heads, info.language.kv_heads) == (3, 4, 2)
    assert info.language.cache_bytes == 2 * 3 * 2 * CONTEXT * info.language.head_size * 2
    assert info.language.parameters == parameters


def test_codes_of_a_file_are_kept(q4_0):
    model = bitsmith.load(q4_0, context=CONTEXT, cache="float32")
    plan = kept_plan(model)
    assert plan.choice("model.layers.0.mlp.up_proj") == plan.choice("lm_head") == "int4:32@float32"
    mixed = kept_plan(model, Plan(model.name, {"lm_head": "int8:32"}))
    assert mixed.choice("lm_head") == "int8:32" and len(mixed.layers) == len(plan.layers)
    feed = {"tokens": lm.tokens(), "position": np.array([0]), "rows": np.arange(lm.TOKENS)}
    want = run_reference(model.graph(lm.TOKENS, lm.TOKENS), feed)["logits"]
    with bitsmith.compile(model, plan=plan) as kept, bitsmith.compile(model) as plain:
        weights = kept.manifest.files["weights.bin"].bytes
        assert weights < plain.manifest.files["weights.bin"].bytes / 4
        chunk = np.pad(lm.tokens(), (0, CONTEXT - lm.TOKENS))
        rows = {"position": np.array([0]), "rows": np.arange(CONTEXT)}
        found = kept.run(tokens=chunk, **rows)["logits"][: lm.TOKENS]
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-4 * np.abs(want).max())


def test_a_plan_with_the_formats_of_a_file_takes_its_codes(q4_0, monkeypatch):
    model = bitsmith.load(q4_0, context=CONTEXT)
    plan = Plan.uniform(model.graph(1, 1), "int4:32")
    asked = []
    monkeypatch.setattr("bitsmith.passes.layer_coder.encode", lambda *a: asked.append(a))
    bitsmith.compile(model, plan=plan).close()
    assert not asked


def test_keeping_codes_on_the_command_line(q4_0, checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["compile", str(q4_0), "-o", str(tmp_path / "kept"), "--context", "16", "--keep-codes"])
    assert not end.value.code
    assert "int4:32@float32" in capsys.readouterr().out
    assert bitsmith.inspect(tmp_path / "kept").language.add_bos is False
    with pytest.raises(InputError, match="holds no codes"):
        kept_plan(bitsmith.load(checkpoint[0], context=16))


def test_given_codes_go_before_those_of_the_file(q4_0):
    model = bitsmith.load(q4_0, context=CONTEXT)
    layer = "model.layers.1.mlp.down_proj"
    coded = model.codes(layer)
    empty = {name: np.zeros_like(array) for name, array in coded.arrays.items()}
    plan = Plan(model.name, {layer: "int4:32"})
    with (
        bitsmith.compile(model, plan=plan) as own,
        bitsmith.compile(
            model, plan=plan, coded={layer: type(coded)(coded.format, coded.shape, empty)}
        ) as other,
    ):
        feed = {"tokens": np.array([7]), "position": np.array([0]), "rows": np.array([0])}
        assert np.abs(own.run(**feed)["logits"] - other.run(**feed)["logits"]).max() > 0.01


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{place}/config.json", "--context", "64"], "is no language model"),
        (["{place}", "--shape", "batch=1"], "its shapes follow from context="),
        (["{place}", "--keep-codes"], "holds no codes that can be kept"),
        (["{place}/gone.gguf"], "cannot read"),
    ],
)
def test_options_that_do_not_fit(arguments, says, checkpoint, tmp_path, capsys):
    filled = [each.format(place=checkpoint[0]) for each in arguments]
    with pytest.raises(SystemExit) as end:
        main(["compile", *filled, "-o", str(tmp_path / "out")])
    assert end.value.code in (InputError.exit_code, ModelError.exit_code)
    assert says in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_tokenizer_that_cannot_be_read(checkpoint):
    broken = bitsmith.load(checkpoint[0], context=8)
    object.__setattr__(broken, "checkpoint", type(broken.checkpoint)("m", broken.config, {}, lambda: "{"))
    with pytest.raises(ModelError, match="the tokenizer cannot be read"):
        bitsmith.compile(broken)
    with pytest.raises(ModelError, match="the tokenizer cannot be read"):
        text_runs(broken, "some text", 64)
