"""examples/cpp: built as its Makefile says, against an artifact; what it prints is what numpy computes."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tiny_program as tiny
from bitsmith.compiler.artifact import open as open_artifact

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "cpp"

pytestmark = pytest.mark.skipif(not (shutil.which("g++") and shutil.which("make")), reason="no g++ and make")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The program, and the artifact that it is linked with."""
    root = tmp_path_factory.mktemp("cpp")
    program, blob, _ = tiny.picture_program()
    artifact = tiny.Toolbox(root).artifact(root / "model", program, blob)
    command = ["make", "-s", "-C", str(EXAMPLE), f"ARTIFACT={artifact}", f"BUILD={root}", "CXX=g++"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0 and not made.stderr, made.stderr
    return root / "classify", artifact


def classify(built: tuple[Path, Path], *words: object, artifact: Path | None = None) -> str:
    command = [str(built[0]), str(artifact or built[1]), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else f"exit {done.returncode}: {done.stderr}"


def write_ppm(path: Path, picture: np.ndarray) -> Path:
    height, width, _ = picture.shape
    path.write_bytes(b"P6\n# a comment\n%d %d\n255\n" % (width, height) + picture.tobytes())
    return path


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def logits(image: np.ndarray, mean: float = 0.5, std: float = 0.5) -> np.ndarray:
    """What the model answers to a picture float[4, 5, 3] of values 0 to 255."""
    planes = ((image.astype(np.float64) / 255 - mean) / std).transpose(2, 0, 1)
    return tiny.picture_program()[2].astype(np.float64) @ planes.reshape(-1)


@pytest.mark.parametrize("threads", [1, 3])
def test_raw_input_gives_what_python_gives(built: tuple[Path, Path], tmp_path: Path, threads: int) -> None:
    x = np.random.default_rng(5).standard_normal((1, 3, 4, 5)).astype(np.float32)
    (tmp_path / "x.f32").write_bytes(x.tobytes())
    printed = classify(
        built, tmp_path / "x.f32", "--threads", threads, "--runs", 3, "--output", tmp_path / "y.f32"
    )
    with open_artifact(built[1]) as artifact:
        want = artifact.run(x)["logits"]
    np.testing.assert_array_equal(np.fromfile(tmp_path / "y.f32", np.float32), want[0])
    rows = re.findall(r"class (\d+)  probability ([\d.]+)  logit (\S+)", printed)
    order = np.argsort(-want[0])[:5]
    assert [int(row[0]) for row in rows] == order.tolist()
    chances = np.exp(want[0]) / np.exp(want[0]).sum()
    np.testing.assert_allclose([float(row[1]) for row in rows], chances[order], atol=1e-4)
    np.testing.assert_allclose([float(row[2]) for row in rows], want[0][order], rtol=1e-5)
    assert re.search(rf"pictures: median \d+\.\d+ ms of 3 runs, {threads} thread", printed)


def test_pictures_are_cropped_resized_and_normalised(built: tuple[Path, Path], tmp_path: Path) -> None:
    same, double, wide = picture(4, 5), picture(8, 10), picture(4, 9)
    halved = double.astype(np.float64).reshape(4, 2, 5, 2, 3).mean((1, 3))
    for given, seen in [(same, same), (double, halved), (wide, wide[:, 2:7])]:
        out = tmp_path / "y.f32"
        classify(built, write_ppm(tmp_path / "p.ppm", given), "--output", out)
        np.testing.assert_allclose(np.fromfile(out, np.float32), logits(seen), atol=1e-4)
    classify(built, tmp_path / "p.ppm", "--mean", "0.1,0.1,0.1", "--std", "2,2,2", "--output", out)
    np.testing.assert_allclose(np.fromfile(out, np.float32), logits(wide[:, 2:7], 0.1, 2), atol=1e-4)


def test_program_needs_only_libc_and_the_artifact(built: tuple[Path, Path]) -> None:
    dynamic = subprocess.run(["readelf", "-d", str(built[0])], capture_output=True, text=True, check=True)
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic.stdout))
    assert "model.so" in needed
    rest = needed - {"model.so"}
    assert rest and all(re.match(r"(libc|libm|libpthread|ld-linux.*)\.so", name) for name in rest), needed


@pytest.mark.parametrize(
    "words, message",
    [
        (["nowhere.ppm"], "cannot read nowhere.ppm: No such file"),
        (["cut.ppm"], "cut.ppm is not a whole PPM picture"),
        (["short.f32"], "short.f32 has 3 bytes, input 'image' has 240"),
        (["short.f32", "--threads", "0"], "--threads must be a positive number, not '0'"),
        (["short.f32", "--threads", "300"], "threads must be 1 to 256, not 300"),
        (["short.f32", "--mean", "1,2"], "--mean must be three numbers"),
        (["short.f32", "--colour", "1"], "unknown option --colour"),
        (["short.f32", "--runs"], "--runs needs a value"),
        ([], "usage: classify ARTIFACT INPUT"),
    ],
)
def test_mistakes_are_explained(
    built: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.f32").write_bytes(b"abc")
    Path("cut.ppm").write_bytes(write_ppm(tmp_path / "p.ppm", picture(4, 5)).read_bytes()[:-1])
    assert re.match(r"exit 1: classify: .*" + re.escape(message), classify(built, *words))


def test_damaged_weights_are_refused(built: tuple[Path, Path], tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(built[1], tmp_path / "damaged"))
    (damaged / "weights.bin").write_bytes(b"?" + (damaged / "weights.bin").read_bytes()[1:])
    (tmp_path / "x.f32").write_bytes(bytes(240))
    assert "weights.bin is damaged" in classify(built, tmp_path / "x.f32", artifact=damaged)
