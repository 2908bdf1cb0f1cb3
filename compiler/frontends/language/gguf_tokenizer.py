"""The tokenizer in a GGUF file's metadata -> tokenizer.json of the `tokenizers` library.

    "gpt2"    byte-level pair encoding; how a text is split first is named by tokenizer.ggml.pre
    "llama"   SentencePiece's pair encoding: merges follow from scores, unknown letters become bytes

(How llama.cpp splits: src/llama-vocab.cpp there.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import ModelError, UnsupportedError

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
DIGITS = r"\p{N}"
SPLITS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "jina-es", "jina-de", "mpt", "olmo", "gigachat"), (GPT2,)),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "smaug-bpe", "dbrx", "pixtral"), (LLAMA3,)
    ),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"), (QWEN2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), (DIGITS, GPT2)),
}
"""Name of a way to split -> the expressions that do it, one after the other."""
CONTROL, USER_DEFINED = 3, 4
"""Types of tokens that are no pieces of a text's words."""
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def gguf_tokenizer(fields: Mapping[str, Any], where: str) -> str:
    """Raises UnsupportedError for another kind, ModelError for metadata that does not fit together."""
    kind = fields.get("tokenizer.ggml.model")
    makers = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in makers:
        raise UnsupportedError(f"{where}: tokenizers of kind {kind!r} are not supported; gpt2 and llama are")
    tokens = fields["tokenizer.ggml.tokens"]
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ModelError(f"{where}: its vocabulary is not a list of texts")
    if len(set(tokens)) != len(tokens):
        raise ModelError(f"{where}: two tokens of its vocabulary have one text")
    try:
        tokenizer = makers[str(kind)](fields, tokens, where)
        _add_special(tokenizer, fields, tokens)
    except UnsupportedError:
        raise
    except Exception as error:  # noqa: BLE001 (the library raises nothing narrower)
        raise ModelError(f"{where}: its tokenizer does not fit together: {error!r}") from None
    return str(tokenizer.to_str())


def _byte_level(fields: Mapping[str, Any], tokens: list[str], where: str) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    name = fields.get("tokenizer.ggml.pre", "gpt-2")
    name = "gpt-2" if name == "default" else name
    if name not in SPLITS:
        raise UnsupportedError(
            f"{where}: how its tokenizer splits texts ({name!r}) is not known; {', '.join(SPLITS)} are. The "
            "directory of the original checkpoint has a tokenizer.json: use that"
        )
    merges = [tuple(pair.split(" ", 1)) for pair in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=SPLITS[name] == (LLAMA3,)))
    splits = [pre_tokenizers.Split(Regex(each), "isolated") for each in SPLITS[name]]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(fields: Mapping[str, Any], tokens: list[str], where: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    prefixed = fields.get("tokenizer.ggml.add_space_prefix", True)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    unknown = tokens[fields.get("tokenizer.ggml.unknown_token_id", 0)]
    merges = _merges(vocabulary, fields["tokenizer.ggml.scores"], fields.get("tokenizer.ggml.token_type"))
    model = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    front = [normalizers.Prepend(SPACE)] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*front, normalizers.Replace(" ", SPACE)])
    behind = [decoders.Strip(" ", 1, 0)] if prefixed else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *behind]
    )
    return tokenizer


def _merges(
    vocabulary: Mapping[str, int], scores: list[float], kinds: list[int] | None
) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others; of better pieces first, then longer parts first."""
    found = []
    for piece, index in vocabulary.items():
        if kinds is not None and kinds[index] in (CONTROL, USER_DEFINED):
            continue
        pairs = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        known = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(scores[index], pair) for pair in known]
    found.sort(key=lambda each: (each[0], len(each[1][0]), len(each[1][1])), reverse=True)
    return [pair for _, pair in found]


def _add_special(tokenizer: Any, fields: Mapping[str, Any], tokens: list[str]) -> None:
    """Tokens that stand whole in a text, and the one that is put in front of it."""
    from tokenizers import AddedToken, processors

    kinds = fields.get("tokenizer.ggml.token_type") or []
    whole = [(tokens[i], kind) for i, kind in enumerate(kinds) if kind in (CONTROL, USER_DEFINED)]
    special = [AddedToken(t, normalized=False, special=True) for t, kind in whole if kind == CONTROL]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, kind in whole if kind == USER_DEFINED])
    bos = fields.get("tokenizer.ggml.bos_token_id")
    usual = fields.get("tokenizer.ggml.model") == "llama" or fields.get("tokenizer.ggml.pre") == "llama-bpe"
    if bos is not None and fields.get("tokenizer.ggml.add_bos_token", usual):
        token = tokens[bos]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[token, "$A"], pair=[token, "$A", "$B"], special_tokens=[(token, bos)]
        )
