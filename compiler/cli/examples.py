"""Example commands that each verb's --help ends with."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "inspect": (
        "bitsmith inspect model.onnx --shape batch=1",
        "bitsmith inspect model.bitsmith --json",
        "bitsmith inspect model.gguf",
    ),
    "compile": (
        "bitsmith compile model.onnx -o float.bitsmith",
        "bitsmith compile model.onnx -o small.bitsmith --uniform int8 --calibration samples.npy",
        "bitsmith compile model.onnx -o best.bitsmith --plan plan.json --calibration samples.npy",
        "bitsmith compile text.onnx -o text.bitsmith --shape batch=1 --shape seq=32,64,128",
        "bitsmith compile model.gguf -o chat.bitsmith --context 4096 --uniform int4:64",
        "bitsmith compile model.gguf -o chat.bitsmith --uniform bitmod4:64 --calibration text.txt",
        "bitsmith compile model.gguf -o chat.bitsmith --plan plan.json --method hqq",
    ),
    "search": (
        "bitsmith search model.onnx -o found --calibration samples.npy --constraint 'agreement>=0.98'",
        "bitsmith search model.onnx -o found -c samples.npy -e others.npy --constraint 'latency<=3ms'",
        "bitsmith search model.gguf -o found --calibration text.txt --constraint 'size<=60MB'",
        "bitsmith search model.gguf -o found --calibration text.txt --constraint 'decode>=200tok/s'",
    ),
    "run": (
        "bitsmith run model.bitsmith picture.npy",
        "bitsmith run model.bitsmith --input image=picture.npy -o outputs.npz",
        "bitsmith run model.bitsmith --random --json",
        "bitsmith run text.bitsmith --input ids=ids.npy --input mask=mask.npy --pad",
    ),
    "bench": (
        "bitsmith bench best.bitsmith --against onnxruntime --model model.onnx --threads 1,2",
        "bitsmith bench best.bitsmith --against float.bitsmith --profile",
    ),
    "diff": (
        "bitsmith diff model.onnx best.bitsmith --inputs samples.npy",
        "bitsmith diff model.onnx best.bitsmith --inputs samples.npy --sqnr 25 --json",
    ),
    "generate": (
        "bitsmith generate model.bitsmith --prompt 'Once upon a time' --max-tokens 100 --threads 2",
        "bitsmith generate model.bitsmith -p - --temperature 0.8 --top-p 0.95 --seed 7 < prompt.txt",
    ),
    "eval": (
        "bitsmith eval small.bitsmith book.txt --tokens 4096",
        "bitsmith eval small.bitsmith book.txt --against float.bitsmith --json",
    ),
    "report": ("bitsmith report found -o page.html",),
    "targets": ("bitsmith targets --json",),
}
