"""GGUF files to compare on: the float reference of a model, and llama.cpp's own quantisations of it."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bitsmith.compiler.errors import InputError, ModelError
from bitsmith.compiler.files import whole_file
from peer_turns import PeerError

KINDS = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q4_K_M": 15}
"""llama.h, enum llama_ftype."""
OWN = ("GGUF.", "general.file_type", "general.quantization_version", "general.architecture")
"""Fields that a writer makes itself, or that no longer hold."""
QUANTISE = """
import json, sys, llama_cpp
source, place, kind = json.loads(sys.argv[1])
options = llama_cpp.llama_model_quantize_default_params()
options.ftype = kind
failed = llama_cpp.llama_model_quantize(source.encode(), place.encode(), options)
sys.exit(f"llama_model_quantize gave {failed}" if failed else 0)
"""


def write_float(source: Path, place: Path) -> None:
    """The GGUF file with every tensor decoded to float32. Raises ModelError for what is no such file."""
    import gguf

    try:
        reader = gguf.GGUFReader(source)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ModelError(f"{source} is no GGUF file: {error}") from None
    with whole_file(place, "the float model") as scratch:
        writer = gguf.GGUFWriter(scratch, reader.fields["general.architecture"].contents())
        for name, field in reader.fields.items():
            if not name.startswith(OWN):
                inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        for tensor in reader.tensors:
            array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, np.ascontiguousarray(array, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def quantised(source: Path, kind: str, place: Path, python: Path) -> None:
    """llama.cpp's own quantisation of the float file, by the llama-cpp-python of that interpreter. Raises
    InputError for a kind that is not known, PeerError with what it said when it fails.
    """
    if kind not in KINDS:
        raise InputError(f"llama.cpp's formats are {', '.join(KINDS)} here, not {kind!r}")
    with whole_file(place, "the quantised model") as scratch:
        words = json.dumps([str(source), str(scratch), KINDS[kind]])
        done = subprocess.run([str(python), "-P", "-c", QUANTISE, words], capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().split("\n")
            raise PeerError(f"{kind} cannot be made: {said[-1]}")


def prepared(
    source: Path, kinds: tuple[str, ...], folder: Path, python: Path, say: Callable[[str], None]
) -> dict[str, Path]:
    """{kind: file}, each made once; `folder` is this source's own."""
    folder.mkdir(parents=True, exist_ok=True)
    whole, made = folder / "float32.gguf", {}
    for kind in kinds:
        made[kind] = folder / f"{kind}.gguf"
        if made[kind].exists():
            continue
        if not whole.exists():
            say("decoding the model to float32")
            write_float(source, whole)
        say(f"llama.cpp: quantising to {kind}")
        quantised(whole, kind, made[kind], python)
    return made
