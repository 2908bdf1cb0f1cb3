"""The benchmark against peers: the workers' protocol, fair turns, statistics, failures kept in their rows."""

import io
import json
import signal
import statistics
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from bitsmith.compiler.errors import InputError, ModelError

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
peer_worker, protocol, turns, stats, env, model, table, bench, peers = (
    import_module(name)
    for name in (
        *("peer_worker", "peer_protocol", "peer_turns", "peer_stats", "peer_env", "peer_model"),
        *("peer_table", "peer_bench", "peers"),
    )
)

DUMMY = """
import os, sys, time
sys.path.insert(0, {benchmarks!r})
import numpy as np, peer_protocol, peer_worker
replies = peer_protocol.private_stdout()
print("an engine's banner")
kind = sys.argv[1]
if kind == "broken":
    raise RuntimeError("no such instruction")
def run(arrays):
    if kind == "hangs": time.sleep(60)
    if kind == "dies": os._exit(3)
    if kind == "raises": raise MemoryError("arena too large")
    return [arrays[0] * 2, arrays[0].sum(axis=1)]
samples = peer_worker.samples([np.arange(12, dtype="f4").reshape(6, 2)], 2)
print('{{"ready": {{"version": "1"}}}}', file=replies, flush=True)
peer_protocol.serve(peer_worker.verbs(run, samples), sys.stdin, replies)
"""


@pytest.fixture
def command(tmp_path):
    script = tmp_path / "dummy.py"
    script.write_text(DUMMY.format(benchmarks=str(BENCHMARKS)))
    return lambda kind: [sys.executable, str(script), kind]


@pytest.fixture
def dummy(command, tmp_path):
    started = []

    def start(kind, **options):
        started.append(turns.Worker(command(kind), tmp_path / f"{kind}.log", **options))
        return started[-1]

    yield start
    for worker in started:
        worker.close()


def gone(pid: int) -> bool:
    """The process has ended (a zombie that waits for its parent has, too)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


# The protocol


def test_samples_are_whole_batches():
    cut = peer_worker.samples([np.arange(7), np.arange(14).reshape(7, 2)], 3)
    assert [[a.tolist() for a in sample] for sample in cut] == [
        [[0, 1, 2], [[0, 1], [2, 3], [4, 5]]],
        [[3, 4, 5], [[6, 7], [8, 9], [10, 11]]],
    ]


def test_requests_are_answered_until_quit(tmp_path):
    calls = []

    def run(arrays):
        calls.append(arrays[0].tolist())
        return [arrays[0] + 1]

    replies = io.StringIO()
    requests = [f"outputs {tmp_path / 'a path.npz'}\n", "run 3\n", "quit\n", "run 9\n"]
    protocol.serve(peer_worker.verbs(run, [[np.array([1.0])], [np.array([5.0])]]), requests, replies)
    count, seconds = [json.loads(line) for line in replies.getvalue().splitlines()]
    assert count == 2 and len(seconds) == 3 and min(seconds) > 0
    assert calls == [[1.0], [5.0], [1.0], [1.0], [1.0]]
    assert np.load(tmp_path / "a path.npz")["0"].tolist() == [2.0, 6.0]


def test_an_unknown_request_is_refused():
    with pytest.raises(ValueError, match="unknown request 'sleep"):
        protocol.serve(
            peer_worker.verbs(lambda arrays: arrays, [[np.zeros(1)]]), ["sleep 3\n"], io.StringIO()
        )


def test_outputs_are_copied_from_an_engine_that_reuses_its_buffer(tmp_path):
    buffer = np.zeros(1)

    def run(arrays):
        buffer[:] = arrays[0]
        return [buffer]

    peer_worker.write_outputs(run, [[np.array([1.0])], [np.array([2.0])]], str(tmp_path / "o.npz"))
    assert np.load(tmp_path / "o.npz")["0"].tolist() == [1.0, 2.0]


def test_a_worker_answers_whatever_its_engine_prints(dummy, tmp_path):
    worker = dummy("works")
    assert worker.ready == {"version": "1"}
    assert len(worker.run(4)) == 4
    assert worker.outputs(tmp_path / "out.npz") == 3
    with np.load(tmp_path / "out.npz") as found:
        rows = np.arange(12, dtype="f4").reshape(6, 2)
        np.testing.assert_array_equal(found["0"], rows * 2)
        np.testing.assert_array_equal(found["1"], rows.sum(axis=1))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("raises", "MemoryError: arena too large"), ("dies", "banner"), ("hangs", "no answer in 0.5 s")],
)
def test_a_worker_that_fails_says_why(dummy, kind, reason):
    worker = dummy(kind)
    worker._timeout_s = 0.5 if kind == "hangs" else worker._timeout_s
    with pytest.raises(turns.PeerError, match=reason):
        worker.run(1)


def test_a_worker_that_does_not_start_says_why(dummy):
    with pytest.raises(turns.PeerError, match="RuntimeError: no such instruction"):
        dummy("broken")


@pytest.mark.parametrize("kind", ["works", "hangs"])
def test_closing_ends_a_worker_idle_or_busy(dummy, kind):
    worker = dummy(kind)
    if kind == "hangs":
        worker._process.stdin.write("run 1\n")
    worker.close()
    assert gone(worker._process.pid)
    worker.close()
    with pytest.raises(turns.PeerError):
        worker.run(1)


@pytest.mark.parametrize(
    ("kind", "busy", "sign"),
    [
        ("works", "pass", signal.SIGKILL),
        ("works", "pass", signal.SIGTERM),
        ("hangs", "run(1)", signal.SIGINT),
    ],
)
def test_a_driver_that_is_stopped_leaves_no_worker(command, tmp_path, kind, busy, sign):
    driver = tmp_path / "driver.py"
    driver.write_text(
        f"import sys, time; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "from pathlib import Path; from peer_turns import Worker\n"
        f"with Worker({command(kind)!r}, Path({str(tmp_path / 'log')!r})) as worker:\n"
        "    print(worker._process.pid, flush=True)\n"
        f"    {busy.replace('run', 'worker.run')}\n"
        "    time.sleep(60)\n"
    )
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, str(driver)], **quiet) as process:
        pid = int(process.stdout.readline())
        assert not gone(pid)
        process.send_signal(sign)
    deadline = time.monotonic() + 20
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert gone(pid)


def test_settling_waits_for_the_spinning_to_end(dummy, monkeypatch):
    worker = dummy("works")
    states, clock = iter([True, True, True, False]), iter([1.0, 1.25])
    monkeypatch.setattr(worker, "runnable", lambda: next(states))
    monkeypatch.setattr(worker, "cpu_s", lambda: next(clock))
    assert worker.settle() == pytest.approx(0.25)
    assert list(states) == []


def test_a_worker_is_runnable_while_it_computes_and_not_when_it_waits(dummy):
    worker = dummy("works")
    worker._process.stdin.write("run 300000\n")
    assert any(worker.runnable() for _ in range(1000))
    assert len(worker._reply()) == 300000
    worker.settle()
    assert not worker.runnable()


# Turns


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 14])
def test_each_has_each_place_and_each_predecessor_equally_often(count):
    cycle = count if count % 2 == 0 else 2 * count
    rows = [turns.order(count, turn) for turn in range(cycle)]
    assert all(sorted(row) == list(range(count)) for row in rows)
    places = [[row[place] for row in rows] for place in range(count)]
    assert all(column.count(i) == cycle // count for column in places for i in range(count))
    pairs = [pair for row in rows for pair in zip(row, row[1:], strict=False)]
    assert all(pairs.count((i, j)) == cycle // count for i in range(count) for j in range(count) if i != j)


class Scripted:
    """A worker whose runs take `seconds`, the first two of a turn ten times that; fails in turn `fails`."""

    def __init__(self, log, name, seconds, fails=None):
        self.log, self.name, self.seconds, self.fails, self.turns = log, name, seconds, fails, 0

    def run(self, count):
        self.log.append(("run", self.name))
        self.turns += 1
        if self.turns == self.fails:
            raise turns.PeerError(f"{self.name} broke")
        return [self.seconds * 10] * 2 + [self.seconds] * (count - 2)

    def settle(self):
        self.log.append(("settle", self.name))
        return 0.25


def test_turns_alternate_drop_the_warm_up_and_last_alike():
    log = []
    workers = {name: Scripted(log, name, s) for name, s in (("fast", 0.001), ("mid", 0.01), ("slow", 1.0))}
    done = []
    rounds, idle, failed = turns.interleave(workers, rounds=6, turn_s=0.06, on_round=done.append)
    assert failed == {} and done == [1, 2, 3, 4, 5, 6]
    assert {name: [len(r) for r in found] for name, found in rounds.items()} == {
        "fast": [60] * 6,
        "mid": [6] * 6,
        "slow": [3] * 6,
    }
    assert all(set(seconds) == {workers[name].seconds} for name, found in rounds.items() for seconds in found)
    assert idle == {"fast": 0.25, "mid": 0.25, "slow": 0.25}
    # Nobody starts before the one before has settled.
    assert log[::2] == [("run", name) for _, name in log[1::2]] and {what for what, _ in log[1::2]} == {
        "settle"
    }
    assert [name for _, name in log[0:6:2]] == ["fast", "mid", "slow"]
    assert len({tuple(name for _, name in log[i : i + 6 : 2]) for i in range(6, len(log), 6)}) == 6


@pytest.mark.parametrize("fails", [1, 3])
def test_a_worker_that_breaks_leaves_the_others_complete(fails):
    log = []
    workers = {"good": Scripted(log, "good", 0.01), "bad": Scripted(log, "bad", 0.01, fails=fails)}
    rounds, idle, failed = turns.interleave(workers, rounds=4)
    assert failed == {"bad": "bad broke"}
    assert list(rounds) == list(idle) == ["good"] and len(rounds["good"]) == 4
    assert log.count(("run", "bad")) == fails


# Statistics


def test_spread_is_median_and_quartiles(rng):
    samples = rng.exponential(size=101).tolist()
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    found = stats.Spread.of(samples)
    assert (found.low, found.median, found.high) == pytest.approx((low, median, high))


def test_a_drift_of_the_machine_cancels_in_the_ratio(rng):
    drift = rng.uniform(1, 3, size=21)
    slow = [[0.03 * d, 0.03 * d, 0.9] for d in drift]
    fast = [[0.02 * d] * 5 for d in drift]
    found = stats.paired_ratio(slow, fast)
    assert (found.low, found.median, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_ratios_need_the_same_rounds():
    with pytest.raises(ValueError):
        stats.paired_ratio([[1.0]], [[1.0], [2.0]])


# Models and data


def onnx_file(path, shape, channels=3):
    """A small classifier: convolution, ReLU, mean, matrix product."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(7)
    weights = {
        "w": rng.standard_normal((8, channels, 3, 3), np.float32) * 0.3,
        "m": rng.standard_normal((8, 5), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def arrays(tmp_path, name, shape):
    np.save(tmp_path / name, np.random.default_rng(len(name)).standard_normal(shape, np.float32))
    return [tmp_path / name]


def test_open_dimensions_take_the_size_of_the_data(tmp_path):
    import onnx

    source = onnx_file(tmp_path / "open.onnx", ["n", 3, "h", "w"])
    data = {
        "calibration": arrays(tmp_path, "cal.npy", (4, 3, 8, 6)),
        "evaluation": arrays(tmp_path, "ev.npy", (5, 3, 8, 6)),
    }
    made = model.subject(source, tmp_path, **data)
    value = onnx.load(made.model).graph.input[0]
    assert [dim.dim_value for dim in value.type.tensor_type.shape.dim] == [1, 3, 8, 6]
    assert made.batch == 1 and made.data == "arrays" and made.labels is None
    np.testing.assert_array_equal(np.load(made.evaluation[0]), np.load(data["evaluation"][0]))


@pytest.mark.parametrize("shape", [(4, 3, 8, 7), (4, 3, 8), (1, 3, 8, 8)])
def test_data_that_do_not_fit_are_refused(tmp_path, shape):
    source = onnx_file(tmp_path / "m.onnx", [2, 3, 8, 8])
    files = arrays(tmp_path, "data.npy", shape)
    with pytest.raises(InputError, match="do not fit"):
        model.subject(source, tmp_path, calibration=files, evaluation=files)


def test_calibration_alone_is_refused(tmp_path):
    source = onnx_file(tmp_path / "m.onnx", [1, 3, 8, 8])
    with pytest.raises(InputError, match="go together"):
        model.subject(source, tmp_path, calibration=arrays(tmp_path, "c.npy", (4, 3, 8, 8)))


@pytest.mark.parametrize("content", [None, b"not onnx", b""])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    path = tmp_path / "bad.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read as an ONNX model"):
        model.load_onnx(path)


def test_noise_is_said_to_be_noise(tmp_path):
    made = model.subject(onnx_file(tmp_path / "m.onnx", [2, 3, 8, 8]), tmp_path)
    assert made.batch == 2 and "noise" in made.data
    assert np.load(made.calibration[0]).shape == (32, 3, 8, 8)
    assert not np.array_equal(np.load(made.calibration[0]), np.load(made.evaluation[0]))


def test_pictures_are_split_scaled_and_labelled_by_their_number(tmp_path):
    from PIL import Image

    for i in range(10):
        Image.new("RGB", (40, 20), (25 * i, 127, 255)).save(tmp_path / f"{i:03}.png")
    (cal,), (ev,), labels = model.folder_pictures(tmp_path, 16)
    assert cal.shape == ev.shape == (5, 3, 16, 16) and ev.dtype == np.float32
    np.testing.assert_allclose(ev[:, 0, 3, 3], (25 * labels - 127) / 128)
    seen = np.rint((cal[:, 0, 0, 0] * 128 + 127) / 25).astype(int)
    assert sorted([*labels.tolist(), *seen.tolist()]) == list(range(10))
    (tmp_path / "000.png").rename(tmp_path / "dog.png")
    assert model.folder_pictures(tmp_path, 16)[2] is None


# Environments


@pytest.fixture
def making(tmp_path, monkeypatch):
    """Counts environments made; they hold this python, so that its pip is run."""
    made = []

    def create(folder, with_pip):
        made.append(with_pip)
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").symlink_to(sys.executable)

    monkeypatch.setattr(env.venv, "create", create)
    monkeypatch.setattr(env, "requirements", lambda engine: tmp_path / "wanted.txt")
    (tmp_path / "wanted.txt").write_text("")
    return made


def test_an_environment_is_made_once_and_again_for_other_versions(tmp_path, making):
    python = env.environment("onnxruntime", tmp_path, str)
    assert python == tmp_path / "onnxruntime" / "bin" / "python" and python.exists()
    assert env.environment("onnxruntime", tmp_path, str) == python and making == [True]
    (tmp_path / "wanted.txt").write_text("# other versions")
    assert env.environment("onnxruntime", tmp_path, str) == python and making == [True, True]


def test_an_install_that_failed_says_why_and_is_tried_again(tmp_path, making):
    (tmp_path / "wanted.txt").write_text("--no-index\nno-such-package==1.0\n")
    for _ in range(2):
        with pytest.raises(turns.PeerError, match="pip could not install it: No matching distribution"):
            env.environment("onnxruntime", tmp_path, str)
    assert making == [True, True]


def test_ours_runs_in_the_projects_environment(tmp_path):
    assert env.environment("bitsmith", tmp_path, print) == Path(sys.executable)


def test_every_peer_version_is_exact():
    for engine in env.PEERS:
        lines = env.requirements(engine).read_text().splitlines()
        pins = [line for line in lines if line and not line.startswith("#")]
        assert any(pin.startswith(f"{engine}==") for pin in pins)
        assert all("==" in pin for pin in pins)


# All together, with the ONNX Runtime that the project has anyway


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers")
    source = onnx_file(folder / "tiny.onnx", [1, 3, 16, 16])
    (folder / "given.bitsmith").mkdir()
    (folder / "given.bitsmith" / "weights.bin").write_bytes(bytes(1000))
    subject = model.subject(source, folder)
    interpreters = {
        "bitsmith": Path(sys.executable),
        "onnxruntime": Path(sys.executable),
        "openvino": turns.PeerError("pip could not install it: no wheel"),
    }
    run = bench.Bench(interpreters, folder / "cache", (1,), 2, lambda text: None)
    return run, subject, folder, bench.bench(run, subject, folder, {"float32": folder / "given.bitsmith"})


def test_a_peer_is_prepared_timed_and_judged(measured):
    rows = measured[3].rows
    by_name = {(row.entry.engine, row.entry.precision): row for row in rows}
    exact, int8 = by_name["onnxruntime", "float32"], by_name["onnxruntime", "int8"]
    assert not exact.failed and not int8.failed
    assert len(exact.rounds) == 2 and exact.latency.low <= exact.latency.median <= exact.latency.high
    assert exact.quality.agreement == 1.0 and exact.quality.sqnr_db == 200.0
    assert int8.entry.variant in {"u8s8", "u8s8 7-bit", "u8u8"}
    assert 10 < int8.quality.sqnr_db < 80
    assert exact.entry.size_bytes == (measured[1].model).stat().st_size


def test_failures_stay_in_their_rows_with_their_reasons(measured):
    _, subject, _, found = measured
    rows = found.rows
    failed = {(row.entry.engine, row.entry.precision): row.failed for row in rows if row.failed}
    assert {pair for pair in failed if pair[0] == "openvino"} == {
        ("openvino", precision) for precision in ("float32", "default", "int8")
    }
    assert failed["openvino", "int8"] == "pip could not install it: no wheel"
    # A directory that is no artifact: what bitsmith.open says of it.
    assert "manifest" in failed["bitsmith", "float32"]
    assert any(
        line == "openvino int8 failed: pip could not install it: no wheel" for line in table.sentences(found)
    )
    result = {"models": [table.to_json(subject, found)]}
    assert peers.ours_failed(json.loads(json.dumps(result)))
    assert next(row for row in rows if row.entry.engine == "bitsmith").entry.size_bytes == 1000


def test_what_was_prepared_is_kept_by_content(measured):
    run, subject, folder, _ = measured
    before = {path: path.stat().st_mtime_ns for path in (folder / "cache").rglob("*.onnx")}
    entries = bench.prepare(run, subject, folder, "onnxruntime", "int8")
    assert len(entries) == 3 and all(entry.path in before for entry in entries)
    assert {path: path.stat().st_mtime_ns for path in (folder / "cache").rglob("*.onnx")} == before
    assert not list((folder / "cache").rglob("*.part"))
    np.save(subject.calibration[0], np.load(subject.evaluation[0]))
    assert bench.prepare(run, subject, folder, "onnxruntime", "float32")[0].path not in before


def test_a_busy_machine_is_told():
    assert table.sentences(bench.Measured([], 0.0)) == []
    (line,) = table.sentences(bench.Measured([], 1.25))
    assert "other processes kept 1.2 cores busy" in line


def test_busy_seconds_include_our_own():
    before, own = turns.busy_cpu_s(), time.process_time()
    while time.process_time() < own + 0.2:
        pass
    # The machine counts in ticks of 10 ms.
    assert turns.busy_cpu_s() - before > 0.15


def row(engine, precision, threads, seconds):
    entry = bench.Entry(engine, precision)
    return bench.Row(entry, threads, {}, [[seconds] * 3] * 4, 0.0, None, "")


def test_ratios_name_the_slower_one(tmp_path):
    rows = [
        row("bitsmith", "float32", 1, 0.008),
        row("bitsmith", "int8", 1, 0.002),
        row("onnxruntime", "int8", 1, 0.004),
        row("onnxruntime", "int8", 2, 0.003),
    ]
    peer = table._row_json(rows[2], rows)
    assert peer["ratio_to_ours"]["int8"]["median"] == pytest.approx(2.0)
    assert peer["ratio_to_ours"]["float32"]["median"] == pytest.approx(0.5)
    assert table._row_json(rows[3], rows)["ratio_to_ours"] == {"float32": None, "int8": None}
    (verdict,) = table.verdicts(rows)
    assert (verdict["peer"], verdict["threads"], verdict["ratio"]) == ("onnxruntime", 1, pytest.approx(0.5))


# The command


def start_peers(*words, **options):
    command = [sys.executable, str(BENCHMARKS / "peers.py"), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--models", "absent.onnx"], 3, "absent.onnx: cannot be read"),
        (["--artifact", "float32=absent"], 5, "expected NAME=PATH"),
        (["--rounds", "0"], 2, "at least 1"),
    ],
)
def test_wrong_words_end_with_one_message(tmp_path, words, code, message):
    process = start_peers(*words, "--env", tmp_path / "env", cwd=tmp_path)
    _, err = process.communicate()
    assert process.returncode == code and message in err and "Traceback" not in err


def test_an_interrupt_has_its_own_exit_code(tmp_path):
    source = onnx_file(tmp_path / "tiny.onnx", [1, 3, 16, 16])
    process = start_peers("--models", source, "--peers", "--env", tmp_path / "env")
    assert "reading the models" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130 and "Traceback" not in err
    assert err.endswith("interrupted; every worker has been ended\n")
