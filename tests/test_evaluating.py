"""evaluate against a checkpoint: the float model is compiled on the way, and equals that of transformers."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
import torch
from bitsmith.compiler.artifact import open
from bitsmith.compiler.cli.app import main
from bitsmith.compiler.errors import ArtifactError
from bitsmith.compiler.pipeline import compile, evaluate, generate, load
from lm_checkpoints import VOCABULARY, config_of, random_model

LETTERS = (string.ascii_letters + string.digits + string.punctuation + " é")[:VOCABULARY]
TEXT = "To be, or not to be: that is the question. Whether 'tis nobler in the mind to suffer? 3, 2, 1."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    place = tmp_path_factory.mktemp("checkpoint")
    random_model(config_of("llama")).save_pretrained(place)
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(LETTERS)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(place / "tokenizer.json"))
    return place


@pytest.fixture(scope="module")
def place(checkpoint: Path) -> Path:
    with compile(load(checkpoint, context=128, cache="float16")) as artifact:
        return artifact.save(checkpoint.parent / "compiled")


def transformers_model(place: Path) -> torch.nn.Module:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()


def test_the_float_model_may_be_a_checkpoint(
    checkpoint: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = torch.tensor([[LETTERS.index(c) for c in TEXT]])
    with torch.no_grad():
        shares = transformers_model(checkpoint)(ids).logits[0].double().log_softmax(-1)
    wanted = float(torch.exp(-shares[:-1].gather(1, ids[0, 1:, None]).mean()))
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    with pytest.raises(SystemExit) as stopped:
        words = ["eval", place, text, "--against", checkpoint, "--window", 128, "--json"]
        main([str(word) for word in words])
    assert not stopped.value.code
    found = json.loads(capsys.readouterr().out)
    assert found["predictions"] == len(TEXT) - 1
    assert found["against_perplexity"] == pytest.approx(wanted, rel=1e-4)
    assert 0 < found["kl"] < 1e-4  # a cache in float16 is close, and not the same


def test_greedy_text_is_transformers_own(checkpoint: Path, place: Path) -> None:
    model, prompt = transformers_model(checkpoint), "To be"
    ids = [LETTERS.index(c) for c in prompt]
    with open(place) as artifact:
        assert artifact.manifest.language is not None
        while len(ids) < 40 and ids[-1] not in artifact.manifest.language.eos:
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        wanted = [i for i in ids[len(prompt) :] if i not in artifact.manifest.language.eos]
        assert wanted
        made = generate(artifact, prompt, max_tokens=40 - len(prompt))
        assert "".join(made) == "".join(LETTERS[i] for i in wanted)


def test_what_is_neither_artifact_nor_checkpoint_is_told(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not exist"):
        evaluate(place, TEXT, tmp_path / "nothing")
