"""The parts of examples/sentences.py that need no package: the network, its file, tokens, and comparisons."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import bitsmith
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import packages  # noqa: E402
import sentences as example  # noqa: E402
from minilm import SentenceEncoder, encoder, read_safetensors, renamed, tokens  # noqa: E402
from sentence_set import QUESTIONS, STORED, made_up  # noqa: E402

CONFIG = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "layer_norm_eps": 1e-12,
    "vocab_size": 40,
    "max_position_embeddings": 12,
    "type_vocab_size": 2,
}
PARTS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
PIECES = {
    **PARTS,
    **{p: i + 4 for i, p in enumerate(("un", "##believ", "##able", "the", "cafe", ".", "##s"))},
}


def write_safetensors(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """As the format's specification says: header size, header, data."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, array in arrays.items():
        kind = {"float32": "F32", "int64": "I64"}[array.dtype.name]
        entry = {"dtype": kind, "shape": array.shape, "data_offsets": [len(data), len(data) + array.nbytes]}
        header[name] = entry
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def published_names() -> dict[str, str]:
    """What the parts of the network are called in published files of BERT -> here."""
    block = {
        "attention.self.query": "query",
        "attention.self.key": "key",
        "attention.self.value": "value",
        "attention.output.dense": "dense",
        "attention.output.LayerNorm": "attended",
        "intermediate.dense": "wide",
        "output.dense": "narrow",
        "output.LayerNorm": "norm",
    }
    names = {f"encoder.layer.{i}.{a}": f"blocks.{i}.{b}" for i in range(2) for a, b in block.items()}
    front = {
        "word_embeddings": "words",
        "position_embeddings": "places",
        "token_type_embeddings": "kinds",
        "LayerNorm": "norm",
    }
    return names | {f"embeddings.{a}": b for a, b in front.items()}


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> SentenceEncoder:
    """A small one, read from files as they are published."""
    place = tmp_path_factory.mktemp("sentences")
    torch.manual_seed(0)
    made = SentenceEncoder(CONFIG)
    state = {name: value.numpy() for name, value in made.state_dict().items()}
    published = {here: there for there, here in published_names().items()}
    arrays = {
        f"{published[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": value
        for name, value in state.items()
    }
    assert {renamed(name) for name in arrays} == set(state)
    arrays["embeddings.position_ids"] = np.arange(12)
    write_safetensors(place / "model.safetensors", arrays)
    (place / "config.json").write_text(json.dumps(CONFIG))
    read = read_safetensors(place / "model.safetensors")
    assert read["embeddings.position_ids"].dtype == np.int64
    return encoder(place / "config.json", place / "model.safetensors")


def in_torchs_own_layers(network: SentenceEncoder, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    x = network.norm(network.words(ids) + network.places.weight[: ids.shape[1]] + network.kinds.weight[0])
    for block in network.blocks:
        layer = torch.nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", 1e-12, batch_first=True).eval()
        attention = layer.self_attn
        rows = (block.query, block.key, block.value)
        attention.in_proj_weight.data = torch.cat([row.weight for row in rows])
        attention.in_proj_bias.data = torch.cat([row.bias for row in rows])
        pairs = (
            (attention.out_proj, block.dense),
            (layer.linear1, block.wide),
            (layer.linear2, block.narrow),
            (layer.norm1, block.attended),
            (layer.norm2, block.norm),
        )
        for theirs, ours in pairs:
            theirs.load_state_dict(ours.state_dict())
        x = layer(x, src_key_padding_mask=mask == 0)
    kept = x[mask.bool()]
    return kept.mean(0) / kept.mean(0).norm()


def test_the_network_is_berts(network):
    ids, mask = (torch.from_numpy(a)[None] for a in tokens("the unbelievable cafes.", PIECES, 12))
    with torch.no_grad():
        found, wanted = network(ids, mask)[0], in_torchs_own_layers(network, ids, mask)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_the_compiled_network_has_torchs_embeddings(network):
    feeds = example.feeds(["the cafe.", "unbelievable"], PIECES)
    for feed in feeds:
        feed["tokens"], feed["mask"] = feed["tokens"][:, :12], feed["mask"][:, :12]
    graph = bitsmith.load(network, inputs=tuple(map(torch.from_numpy, feeds[0].values())))
    with bitsmith.compile(graph) as artifact:
        for feed in feeds:
            (found,) = artifact.run(**feed).values()
            with torch.no_grad():
                wanted = network(*map(torch.from_numpy, feed.values())).numpy()
            assert (found * wanted).sum() >= example.LEAST_FLOAT


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Unbelievable.", [2, 4, 5, 6, 9, 3]),
        ("THE cafés", [2, 7, 8, 10, 3]),
        ("the dog", [2, 7, 1, 3]),
        ("", [2, 3]),
        ("the " * 20, [2, *[7] * 10, 3]),
    ],
)
def test_tokens_are_the_longest_pieces(text, numbers):
    ids, mask = tokens(text, PIECES, 12)
    assert ids.tolist() == numbers + [0] * (12 - len(numbers))
    assert mask.tolist() == [1.0] * len(numbers) + [0.0] * (12 - len(numbers))


def test_the_order_of_pairs_is_compared():
    rows = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]
    mixed = rows + 0.3
    assert example.same_order(mixed, mixed * 2) == pytest.approx(1)
    assert example.same_order(mixed, rows[::-1] + 0.3) < 0.9
    assert example.answer(rows[:4], rows[2]).startswith(STORED[2])


def test_made_up_sentences_depend_on_the_seed_and_are_not_those_that_are_shown():
    assert made_up(5, 1) == made_up(5, 1) != made_up(5, 2)
    assert not {*made_up(300, 0)} & {*STORED, *QUESTIONS}


def test_files_of_packages_are_kept(tmp_path, monkeypatch):
    """A wheel stands in for pip's."""

    def wheel(requirement, folder):
        assert requirement == "words==1.0"
        with zipfile.ZipFile(Path(folder) / "inner.zip", "w") as inner:
            inner.writestr("deep/config.json", "{}")
        with zipfile.ZipFile(Path(folder) / "words.whl", "w") as outer:
            outer.write(Path(folder) / "inner.zip", "words/inner.zip")
        return Path(folder) / "words.whl"

    monkeypatch.setattr(packages, "CACHE", tmp_path)
    monkeypatch.setattr(packages, "_wheel", wheel)
    archive = packages.model_file("words==1.0", "words/inner.zip")
    assert packages.zipped_file(archive, "deep/config.json").read_text() == "{}"
    assert (packages.package_folder("words==1.0") / "words" / "inner.zip").is_file()
    monkeypatch.setattr(packages, "_wheel", None)  # a second time nothing is fetched
    assert packages.model_file("words==1.0", "words/inner.zip") == archive
    assert packages.package_folder("words==1.0").is_dir()
