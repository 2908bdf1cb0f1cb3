"""Rooflines: floors against hand-computed values, work against counts by hand, limits that hang together."""

import json
import re
import subprocess
from shutil import which

import numpy as np
import pytest
from bitsmith.compiler.analysis.roofline import Level, Peaks, Roofline, Work, floor_of, kernel_row, roofline
from bitsmith.compiler.artifact.manifest import parse_manifest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.database import Database
from bitsmith.compiler.errors import ArtifactError, InternalError, TargetError
from bitsmith.passes.apply_plan import apply_plan
from bitsmith.passes.prepare import prepare
from bitsmith.targets.build import build
from bitsmith.targets.call import kernel_symbol
from bitsmith.targets.isa import ISAS
from bitsmith.targets.kernels.peak import ROWS, STEPS, UNROLL, VECTORS, RateSpec, StreamSpec
from bitsmith.targets.lower import lower
from bitsmith.targets.objects import is_whole, kernel_objects
from bitsmith.targets.peaks import check_rates, machine_peaks, rate_names, working_sets
from bitsmith.targets.profile import artifact_roofline
from bitsmith.targets.target import TARGETS, Target, resolve
from made_up_result import made_up_roofline

# Reads of L1 take 0.01 ns a byte and writes as much; L2 0.02 and 0.03; memory 0.1 and 0.3.
LEVELS = (
    Level("L1", 1000, 100.0, 100.0),
    Level("L2", 10000, 50.0, 40.0),
    Level("memory", 0, 10.0, 5.0),
)
PEAKS = Peaks({"float32": 100.0, "ubs256": 200.0}, LEVELS)


def test_levels_say_their_size_and_what_writing_adds():
    assert [level.write_ns for level in LEVELS] == pytest.approx([0.01, 0.03, 0.3])
    assert Level("L2", 512 << 10, 1, 1).label == "L2 (512 KiB)"
    assert [Level("L3", n << 20, 1, 1).label for n in (0, 32)] == ["L3", "L3 (32 MiB)"]
    assert Level("odd", 1, 10.0, 40.0).write_ns == 0.0  # a copy measured faster than a read: noise


@pytest.mark.parametrize(
    ("work", "footprint", "nanoseconds", "limit"),
    [
        (Work(10000, "float32", 400, 100, 500), 1000, 100.0, "float32 rate"),
        (Work(10000, "ubs256", 400, 100, 500), 1000, 50.0, "ubs256 rate"),
        (Work(100, "float32", 400, 100, 500), 1000, 4 + 1 + 5, "L1 bandwidth"),
        # weights come from where a whole run's memory lies
        (Work(100, "float32", 400, 100, 500), 5000, 4 + 1 + 10, "L2 bandwidth"),
        (Work(100, "float32", 400, 100, 500), 99999, 4 + 1 + 50, "memory bandwidth"),
        # 2000 bytes of activations: 1000 at L1's speed, 1000 at L2's
        (Work(0, "", 1500, 500, 0), 2000, (15 + 5) / 2 + (30 + 15) / 2, "L2 bandwidth"),
        # 20000: 1000, 9000, and the other half from memory
        (Work(0, "", 20000, 0, 0), 20000, 10 + 180 + 1000, "memory bandwidth"),
        # arithmetic without a measured limit binds nothing
        (Work(10**9, "", 100, 100, 0), 200, 2.0, "L1 bandwidth"),
        (Work(10**9, "bfloat16", 100, 100, 0), 200, 2.0, "L1 bandwidth"),
    ],
)
def test_floors(work, footprint, nanoseconds, limit):
    assert floor_of(work, PEAKS, footprint) == (pytest.approx(nanoseconds), limit)


def test_rows_and_their_sums():
    rows = [
        kernel_row("conv", "gemm", 0.25, Work(10000, "float32", 400, 100, 500), PEAKS, 1000),
        kernel_row("part", "relax", 0.02, Work(None, "", 400, 100, 500), PEAKS, 1000),
        kernel_row("old", "other", 0.05, None, PEAKS, 1000),
        kernel_row("move", "copy", 0.01, Work(0, "", 100, 100, 0), PEAKS, 1000),
    ]
    conv, part, old, move = rows
    assert (conv.gops, conv.gbs) == (pytest.approx(40.0), pytest.approx(4.0))
    assert (conv.floor_us, conv.share, conv.above_us) == pytest.approx((0.1, 0.4, 0.15))
    assert part.gops is None and part.limit == "L1 bandwidth (operations unknown)"
    assert part.share == pytest.approx(0.5)
    assert (old.gbs, old.floor_us, old.share, old.limit) == (None, None, None, "unknown")
    assert move.gops is None and move.gbs == pytest.approx(20.0)
    whole = roofline(rows, PEAKS, 0.07, speed=0.8)
    assert (whole.kernels_us, whole.run_us) == pytest.approx((0.33, 0.40))
    assert whole.floor_us == pytest.approx(0.1 + 0.01 + 0.05 + 0.002)  # nothing is known of "old"
    assert (whole.unknown, whole.share) == (2, pytest.approx(0.162 / 0.4))
    assert [row.layer for row in whole.by_excess()] == ["conv", "old", "part", "move"]
    assert Roofline.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def test_the_table_for_the_terminal(capsys):
    from bitsmith.compiler.cli.roofline_table import kernels
    from rich.console import Console

    found = made_up_roofline([f"blocks.{i}[conv]" for i in range(3)])
    for part in kernels("net[x]", found):
        Console(width=200).print(part)
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if "│" in line]
    assert [line.split("│")[1].strip() for line in lines] == [row.layer for row in found.by_excess()]
    assert "unknown" in next(line for line in lines if "softmax" in line)
    assert "net[x]" in text and "blocks.1[conv]" in text, "names are not markup"
    assert "outside of them 41" in text and "operations of 2 kernels are not known" in text
    assert "it gave 100% of its float32 limit" in " ".join(text.split())
    assert "L2 (512 KiB) 102" in text and "ubs256 197 GOP/s" in text


def network():
    rng = np.random.default_rng(0)
    b = GraphBuilder("counted")

    def weights(*shape):
        return b.param(f"w{shape}", rng.standard_normal(shape).astype(np.float32))

    x = b.input("x", (1, 8, 12, 12))
    stem = b.add("conv2d", [x, weights(16, 8, 3, 3)], name="stem", pads=(1,) * 4)
    thin = b.add("conv2d", [stem, weights(4, 16, 1, 1)], name="thin", strides=(2, 2))
    deep = b.add("conv2d", [thin, weights(4, 1, 3, 3)], name="deep", groups=4)
    mean = b.add("reduce_mean", [deep], axes=(2, 3), keepdims=False)
    return b.finish([b.add("linear", [mean, weights(6, 4)], name="head")])


def works_of(graph, target):
    program = lower(graph, target).program
    return {step.layer: step.work for step in program.steps}, [step.work for step in program.steps]


def test_work_is_what_one_counts_by_hand():
    works, _ = works_of(prepare(network()), TARGETS["x86-64-avx2"])
    pixels = 12 * 12
    assert works["stem"] == Work(
        2 * pixels * 16 * 8 * 9, "float32", 4 * 8 * pixels, 4 * 16 * pixels, 4 * 16 * 8 * 9
    )
    # a stride of 2 passes over three of four pixels
    assert works["thin"] == Work(2 * 36 * 4 * 16, "float32", 4 * 16 * 36, 4 * 4 * 36, 4 * 4 * 16)
    assert works["deep"] == Work(2 * 16 * 4 * 9, "float32", 4 * 4 * 36, 4 * 4 * 16, 4 * 4 * 9)
    assert works["head"] == Work(2 * 6 * 4, "float32", 4 * 4, 4 * 6, 4 * 6 * 4)


@pytest.mark.parametrize(
    ("target", "dense", "depthwise"),
    [
        ("x86-64", "portable", "portable"),
        ("x86-64-avx2", "madd256", "madd256"),
        ("x86-64-avx512-vnni", "vnni512", "madd512"),
    ],
)
def test_int8_work_names_the_way_it_multiplies(target, dense, depthwise):
    from bitsmith.compiler.calibrate import calibrate
    from bitsmith.compiler.plan import Plan

    graph = prepare(network())
    ranges = calibrate(graph, np.random.default_rng(1).standard_normal((4, 8, 12, 12)).astype(np.float32))
    planned = apply_plan(graph, Plan.uniform(graph, "int8"), ranges, pair_bound=False)
    works, every = works_of(planned, TARGETS[target])
    assert all(work is not None for work in every)
    assert works["deep"].rate == depthwise
    assert {works["thin"].rate, works["head"].rate} <= {dense, "ubs256"} and works["thin"].rate != "float32"
    assert set(rate_names(TARGETS[target].isa)) >= {works["thin"].rate, works["deep"].rate, "float32"}
    assert works["deep"].read_bytes == 4 * 36  # uint8


@pytest.mark.parametrize(("target", "rate"), [("x86-64-avx2", "bf16"), ("x86-64-avx512-bf16", "bf16dot")])
def test_bfloat16_work_names_the_way_it_multiplies(target, rate):
    """Of both kernels: short sums and long ones."""
    import ml_dtypes

    b = GraphBuilder("mlp")
    hidden = b.add("linear", [b.input("x", (4, 40)), b.param("w", np.ones((700, 40), ml_dtypes.bfloat16))])
    y = b.add("linear", [hidden, b.param("v", np.ones((8, 700), ml_dtypes.bfloat16))])
    _, every = works_of(b.finish([y]), TARGETS[target])
    assert [work.rate for work in every] == [rate, rate]
    assert [work.weight_bytes for work in every] == [2 * 700 * 40, 2 * 700 * 8]
    assert rate in rate_names(TARGETS[target].isa)


def test_moving_data_reads_no_more_than_it_writes():
    b = GraphBuilder("moves")
    x = b.input("x", (1, 64, 5, 5))
    part = b.add("slice", [x], name="part", starts=(0, 3, 0, 0), stops=(1, 5, 5, 5), steps=(1,) * 4)
    works, _ = works_of(b.finish([part]), TARGETS["x86-64"])
    assert works["part"] == Work(0, "float32", 4 * 2 * 25, 4 * 2 * 25, 0)


def test_rope_reads_the_rows_of_its_tables_that_it_needs():
    b = GraphBuilder("turned")
    x, position = b.input("x", (3, 2, 8)), b.input("position", (1,), "int64")
    cos, sin = (b.param(name, np.ones((500, 4), np.float32)) for name in ("cos", "sin"))
    works, _ = works_of(
        b.finish([b.add("rope", [x, cos, sin, position], name="rope")]), TARGETS["x86-64-avx2"]
    )
    assert works["rope"].weight_bytes == 2 * 3 * 4 * 4
    assert works["rope"].read_bytes == 4 * 3 * 2 * 8 + 8


def test_peak_kernels_do_nothing_but_multiply(tmp_path):
    """The loop of each holds as many of its instruction as it counts, on all targets with vectors of int8."""
    if which("objdump") is None:
        pytest.skip("objdump (binutils) is not installed")
    instructions = {"float32": "vfmadd", "vnni": "vpdpbusd", "madd": "vpmaddwd|vpdpwssd", "ubs": "vpmaddubsw"}
    instructions |= {"pairs": "vpmaddubsw", "bf16": "vfmadd", "bf16dot": "vdpbf16ps"}
    for isa in [isa for isa in ISAS.values() if isa.dot != "portable"]:
        specs = {name: RateSpec(name, isa.lanes) for name in rate_names(isa)}
        assert all(spec.row.lanes == isa.lanes for spec in specs.values())
        objects = kernel_objects({kernel_symbol(s): s for s in specs.values()}, isa, tmp_path)
        for (name, spec), path in zip(specs.items(), objects, strict=True):
            listed = subprocess.run(["objdump", "-d", str(path)], capture_output=True, text=True, check=True)
            kind = name if name in instructions else name.rstrip("0123456789")
            found = re.findall(rf"\s(?:{instructions[kind]})\w*\s", listed.stdout)
            each = 2 if name == "bf16" else 1  # a product for either number of a pair
            assert len(found) == each * ROWS * VECTORS * UNROLL, (isa.name, name)
            assert spec.operations == 2 * STEPS * ROWS * VECTORS * isa.lanes * spec.row.group


def test_generic_peak_kernels_compile(tmp_path):
    isa = ISAS["x86-64"]
    specs = [
        *(RateSpec(name, isa.lanes) for name in rate_names(isa)),
        StreamSpec("read", 4),
        StreamSpec("copy", 4),
    ]
    assert all(map(is_whole, kernel_objects({kernel_symbol(s): s for s in specs}, isa, tmp_path)))


def test_working_sets_lie_in_their_level():
    sets = working_sets((32 << 10, 512 << 10, 32 << 20), 64 << 30)
    assert [name for name, _, _ in sets] == ["L1", "L2", "L3", "memory"]
    smaller = 0
    for _, capacity, nbytes in sets[:-1]:
        assert smaller < nbytes <= capacity / 2 or nbytes > smaller == 0
        smaller = capacity
    assert sets[-1][2] == 96 << 20
    assert working_sets((32 << 10,), 512 << 20)[-1][2] == 32 << 20  # a small machine


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return Database(tmp_path_factory.mktemp("peaks") / "measurements.db")


@pytest.mark.parametrize("name", ["host", "x86-64"])
def test_limits_hang_together(database, name):
    target = resolve(name)
    peaks = machine_peaks(target, database)
    assert set(peaks.rates) == set(rate_names(target.isa))
    assert all(speed > 0 for speed in peaks.rates.values())
    assert peaks.levels[-1].name == "memory" and all(0 < x.read_gbs < 10_000 for x in peaks.levels)
    assert machine_peaks(target, database) == peaks, "measured once, then kept"


def test_rates_beyond_what_the_chip_can_do_are_refused():
    isa = ISAS["avx2"]
    check_rates({"float32": 2 * isa.macs[0] * 5.0, "ubs256": 2 * isa.macs[1] * 5.0}, isa)
    for broken in ({"float32": 2 * isa.macs[0] * 11.0}, {"ubs256": 2 * isa.macs[1] * 11.0}):
        with pytest.raises(InternalError, match=next(iter(broken))):
            check_rates(broken, isa)


def test_limits_of_another_machine_are_not_measured_here(database):
    alien = Target("alien", ISAS["avx512-vnni"], "made up")
    object.__setattr__(alien, "__dict__", {**alien.__dict__, "runs_here": False, "fingerprint": "alien"})
    with pytest.raises(TargetError, match="cannot be measured here"):
        machine_peaks(alien, database)


def test_an_artifact_carries_its_work(database, tmp_path):
    graph = prepare(network())
    with build(graph, resolve("host"), tmp_path / "made") as artifact:
        x = np.random.default_rng(2).standard_normal((1, 8, 12, 12)).astype(np.float32)
        artifact.set_threads(2)
        found = artifact_roofline(artifact, {"x": x}, database, rounds=5)
        assert artifact.threads == 2
        names = [(row.layer, row.kernel) for row in found.rows]
        assert tuple(names) == artifact.steps()
        assert 0 < found.speed < 2
        assert found.unknown == 0 and found.run_us == pytest.approx(found.kernels_us + found.outside_us)
        assert all(row.floor_us > 0 and row.microseconds > 0 for row in found.rows)
        whole, steps = artifact.trace(x)
        assert steps.shape == (len(names),) and 0 < steps.sum() <= whole


def test_artifacts_from_before_work_was_counted(database, tmp_path):
    place = tmp_path / "made"
    build(prepare(network()), resolve("host"), place).close()
    data = json.loads((place / "manifest.json").read_text())
    old = {**{k: v for k, v in data.items() if k != "steps"}, "format_version": 1}
    (place / "manifest.json").write_text(json.dumps(old))
    from bitsmith.compiler.artifact import open as open_artifact

    feed = {"x": np.zeros((1, 8, 12, 12), np.float32)}
    with open_artifact(place) as artifact:
        found = artifact_roofline(artifact, feed, database, rounds=5)
        assert found.unknown == len(found.rows) and {row.limit for row in found.rows} == {"unknown"}
    for steps, says in ((data["steps"][:1], "counts 1 steps"), ([{"odd": 1}] * len(data["steps"]), "odd")):
        (place / "manifest.json").write_text(json.dumps({**data, "steps": steps}))
        with open_artifact(place) as artifact, pytest.raises(ArtifactError, match=says):
            artifact_roofline(artifact, feed, database, rounds=5)
    with pytest.raises(ArtifactError, match="steps"):
        parse_manifest(json.dumps({**data, "steps": [3]}), "manifest.json")
