"""The benchmark of several networks: their means, and that a network is the one that it says."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_models import model, node

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
networks, network_set, peer_bench, peer_model = (
    import_module(name) for name in ("networks", "network_set", "peer_bench", "peer_model")
)


def row(engine, precision, threads, seconds):
    return peer_bench.Row(
        peer_bench.Entry(engine, precision), threads, {}, [[seconds] * 3] * 4, 0.0, None, ""
    )


def test_ratios_are_to_each_peer_at_the_same_precision_and_threads():
    rows = [
        row("bitsmith", "float32", 1, 0.004),
        row("bitsmith", "int8", 1, 0.003),
        row("onnxruntime", "float32", 1, 0.008),
        row("onnxruntime", "float32", 2, 0.001),
        row("openvino", "int8", 1, 0.002),
        row("openvino", "default", 1, 0.002),
    ]
    found = networks.ratios_of(peer_bench.Measured(rows, 0.0))
    assert found == {
        (1, "float32", "onnxruntime"): pytest.approx(0.5),
        (1, "int8", "openvino"): pytest.approx(1.5),
    }


def test_the_mean_is_over_the_networks_that_a_peer_runs():
    assert networks.geometric_mean([0.5, 2.0, 1.0]) == pytest.approx(1.0)
    here, there = (1, "float32", "a"), (1, "float32", "b")
    made = networks.summary({"one": {here: 0.25}, "two": {here: 1.0, there: 0.7}})
    cells = [list(column.cells) for column in made.columns]
    assert cells == [["one", "two", "geometric mean"], ["0.25", "1.00", "0.50"], ["–", "0.70", "0.70"]]


def test_resnet_50_has_its_parameters():
    """25,557,032, as its paper's reimplementations have."""
    assert sum(p.numel() for p in network_set._resnet50().parameters()) == 25_557_032


def test_samples_fit_the_network_and_are_no_two_alike(tmp_path, monkeypatch):
    """The classifier's file gives height and width one name."""
    network = tmp_path / "cls.onnx"
    made = model([node("Relu", "x", "y")], {"x": ("n", 3, "any", "any")}, {"y": 1})
    onnx.save(onnx.shape_inference.infer_shapes(made), network)
    monkeypatch.setattr(network_set.example("packages"), "model_file", lambda *asked: network)
    source, calibration, evaluation = network_set.ppocr_cls(tmp_path, tmp_path)
    subject = peer_model.subject(source, tmp_path, calibration=calibration, evaluation=evaluation)
    samples = np.concatenate([np.load(path) for path in (*subject.calibration, *subject.evaluation)])
    assert samples.shape == (64, 3, 48, 192) and len(np.unique(samples.reshape(64, -1), axis=0)) == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--only", "alexnet"], "invalid choice: 'alexnet'"), (["--threads", "0"], "must be at least 1")],
)
def test_wrong_words_are_refused(words, message):
    command = [sys.executable, str(BENCHMARKS / "networks.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
