"""The search over a synthetic network, whose best plan and whose times and losses are known exactly."""

import itertools
import json
from dataclasses import replace

import pytest
from bitsmith.compiler.errors import InputError, OutputError
from bitsmith.compiler.plan import Plan
from bitsmith.search import explore
from bitsmith.search.engine import run_search
from bitsmith.search.objectives import parse_constraints
from bitsmith.search.result import SearchResult
from bitsmith.search.session import Settings
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_search import Synthetic


def asked(*constraints, **options):
    return Settings(constraints=parse_constraints(constraints), **{"trials": 12, **options})


def every_plan(network):
    names = [x.name for x in network.layers]
    for bits in itertools.product(("float32", "int8"), repeat=len(names)):
        yield replace(network.base_plan, layers=dict(zip(names, bits, strict=True)))


def test_it_finds_the_fastest_plan_within_the_bound():
    network = Synthetic(count=8)
    bound = 0.3 * network.true_kl(Plan("synthetic", dict.fromkeys(network.kl, "int8")))
    result = run_search(network, asked(f"kl<={bound}"))
    best = min(network.true_us(p) for p in every_plan(network) if network.true_kl(p) <= bound)
    assert result.met and result.best.quality.kl <= bound
    assert network.true_us(result.best.plan) == pytest.approx(best)


def test_it_corrects_for_what_does_not_add_up():
    """Neighbours that are both int8 lose more than the sum: the allocation alone would miss the bound."""
    network = Synthetic(count=14, interaction=0.002, seed=3)
    bound = 0.3 * network.true_kl(Plan("synthetic", dict.fromkeys(network.kl, "int8")))
    few, many = (run_search(network, asked(f"kl<={bound}", trials=t)) for t in (8, 40))
    best = min(network.true_us(p) for p in every_plan(network) if network.true_kl(p) <= bound)
    assert few.met and many.met
    assert network.true_us(many.best.plan) <= network.true_us(few.best.plan)
    assert network.true_us(many.best.plan) <= 1.03 * best


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 10),
    st.floats(0, 20),
    st.floats(0, 40),
    st.sampled_from(
        [(), ("agreement>=0.97",), ("kl<=0.004",), ("latency<=0.8x",), ("size<=0.7x", "kl<=0.05")]
    ),
    st.integers(0, 12),
)
def test_the_best_is_never_slower_than_a_baseline_that_meets_the_constraints(
    seed, count, overhead, conversion, constraints, trials
):
    network = Synthetic(count=count, seed=seed, overhead_us=overhead, conversion_us=conversion)
    result = run_search(network, asked(*constraints, trials=trials))
    for baseline in result.baselines:
        if baseline.feasible:
            assert result.met
            assert network.true_us(result.best.plan) <= network.true_us(baseline.plan) * (1 + 1e-9)
    assert [row.layer for row in result.ledger] == [x.name for x in network.layers]
    assert {row.layer: row.choice for row in result.ledger} == dict(result.best.plan.layers)
    assert SearchResult.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False))) == result


def test_layers_that_are_slower_in_int8_stay_float_with_the_reason():
    network = Synthetic(count=10, conversion_us=0.1)
    result = run_search(network, asked("kl<=10"))
    rows = {row.layer: row for row in result.ledger}
    for i, name in enumerate(rows):
        assert rows[name].choice == ("float32" if i % 5 == 4 else "int8")
        expected = "int8 measured slower" if i % 5 == 4 else "2.0x faster here"
        assert expected in rows[name].reason
    assert sum(row.error_share for row in rows.values()) == pytest.approx(1.0)
    assert rows["layer0"].bits == pytest.approx(8 * 1128 / 1000)


def test_an_int8_layer_that_only_spares_conversions_says_so():
    network = Synthetic(count=10, conversion_us=200.0)
    result = run_search(network, asked("kl<=10"))
    slow = next(row for row in result.ledger if row.layer == "layer4")
    assert slow.choice == "int8" and "conversions" in slow.reason


def test_layers_kept_float_for_quality_name_the_constraint():
    network = Synthetic(count=10, conversion_us=0.1)
    result = run_search(network, asked("kl<=0.003"))
    worst = max((x for i, x in enumerate(network.kl) if i % 5 != 4), key=network.kl.__getitem__)
    row = next(r for r in result.ledger if r.layer == worst)
    assert row.choice == "float32" and "kept to meet kl<=0.003" in row.reason


def test_the_gate_takes_back_layers_that_do_not_pay_inside_the_network():
    """The kernel table promises a gain that the network does not show: 30 us more for each int8 layer."""
    network = Synthetic(count=10, overhead_us=30.0, conversion_us=0.0)
    result = run_search(network, asked("kl<=10", trials=1))
    pays = {n for n in network.kl if network.int8_us[n] + 30.0 < network.float_us[n]}
    assert result.best.int8_layers == pays and result.best.origin == "finalist"
    lost = next(
        row
        for row in result.ledger
        if row.choice == "float32" and network.int8_us[row.layer] < network.float_us[row.layer]
    )
    assert "did not pay inside the network" in lost.reason


def test_what_stays_float_becomes_bfloat16_where_the_chip_gains():
    """Every fifth layer is slower in int8; in bfloat16 it takes 0.6 of float32's time."""
    network = Synthetic(count=10, conversion_us=0.1, bfloat16=0.6)
    result = run_search(network, asked("kl<=10"))
    rows = {row.layer: row for row in result.ledger}
    assert [row.choice for row in rows.values()] == (["int8"] * 4 + ["bfloat16"]) * 2
    assert result.best.name.endswith("-bfloat16") and result.best.origin == "finalist"
    assert network.true_us(result.best.plan) == pytest.approx(
        sum(us * (0.6 if i % 5 == 4 else 0.5) for i, us in enumerate(network.float_us.values())) + 0.3
    )
    assert rows["layer4"].weight_bytes == 4064 - 2000 and "bfloat16: half the size" in rows["layer4"].reason
    assert SearchResult.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False))) == result


def test_bfloat16_that_takes_longer_does_not_win_unless_size_counts():
    network = Synthetic(count=10, conversion_us=0.1, bfloat16=1.2)
    fast = run_search(network, asked("kl<=10"))
    assert {row.choice for row in fast.ledger} == {"int8", "float32"}
    small = run_search(network, asked("kl<=0.003", objectives=("size", "quality")))
    assert {row.choice for row in small.ledger} == {"int8", "bfloat16"}
    assert ("narrowed", True) in network.log and ("narrowed", False) in network.log


def test_the_winner_is_chosen_on_samples_that_the_trials_did_not_see():
    class Optimistic(Synthetic):
        def quality(self, built, part):
            seen = super().quality(built, part)
            return replace(seen, kl=seen.kl * 2.5) if part == "confirm" else seen

    network = Optimistic(count=12)
    result = run_search(network, asked("kl<=0.008", trials=16))
    assert result.met and 2.5 * network.true_kl(result.best.plan) <= 0.008
    assert any(c.feasible and 2.5 * network.true_kl(c.plan) > 0.008 for c in result.trials)


def test_when_nothing_meets_the_constraints_the_closest_is_returned():
    network = Synthetic(count=8)
    result = run_search(network, asked("latency<=1us", "kl<=10"))
    assert not result.met and not result.best.feasible
    assert any("closest" in note for note in result.notes)
    fastest = min(network.true_us(c.plan) for c in result.trials)
    assert network.true_us(result.best.plan) == pytest.approx(fastest)


def test_without_a_bound_on_quality_the_default_is_kept_and_named():
    result = run_search(Synthetic(count=8), asked("latency<=1s"))
    assert result.constraints == ("latency<=1s", "agreement>=0.98")
    assert any("agreement>=0.98 was used" in note for note in result.notes)
    assert result.best.quality.agreement >= 0.98


def test_size_can_be_what_is_minimised():
    network = Synthetic(count=10)
    result = run_search(network, asked("kl<=0.01", objectives=("quality", "size"), trials=30))
    others = [c.size_bytes for c in result.trials if c.quality.kl <= 0.01]
    assert result.best.size_bytes == min(others) < result.float32.size_bytes


def test_drift_between_trials_falls_out():
    network = Synthetic(count=10)
    result = run_search(network, asked("kl<=10"))
    scale = result.trials[0].latency_us / network.true_us(result.trials[0].plan)
    for candidate in result.trials:
        assert candidate.latency_us == pytest.approx(scale * network.true_us(candidate.plan))


class Slowing(Synthetic):
    """The machine is `slower` times as slow from the first joint run of the finalists on."""

    slower = 1.3

    def latency(self, builds, *, repeats, seconds, threads=None):
        measured = super().latency(builds, repeats=repeats, seconds=seconds, threads=threads)
        if len(builds) > 2:
            self.joint = True
        drift = self.slower if getattr(self, "joint", False) else 1.0
        scale = drift * self.true_us(builds["float32"].plan) / measured["float32"].median_us
        return {
            name: replace(t, median_us=t.median_us * scale, spread_us=t.spread_us * scale)
            for name, t in measured.items()
        }


@pytest.mark.parametrize("slower", [0.8, 1.0, 1.3])
def test_milliseconds_are_those_of_the_joint_run_everywhere(slower):
    network = Slowing(count=10)
    network.slower = slower
    result = run_search(network, asked("kl<=0.02", "latency<=520us", trials=16))
    for c in (*result.trials, *result.front, *result.baselines, result.best):
        assert c.latency_us == pytest.approx(slower * network.true_us(c.plan))
        within = network.true_us(c.plan) * slower <= 520 and c.quality.kl <= 0.02
        assert c.feasible == within, c.name
    for c in (*result.baselines, result.best):  # the joint run's own medians are the same numbers
        assert c.latency_us == pytest.approx(c.latency.median_us)
    assert result.met == any(c.feasible for c in (*result.trials, result.best))


def test_finalists_are_taken_in_when_only_the_joint_run_shows_that_they_are_needed():
    """Best in quality within the bound: all that were when the search went on are beyond it at the end."""
    network = Slowing(count=10)
    bound = 0.9 * network.true_us(network.base_plan)
    limits = asked(f"latency<={bound}us", "kl<=1", objectives=("quality",), trials=40)
    result = run_search(network, limits)
    on_the_old_scale = [c for c in result.trials if network.true_us(c.plan) <= bound]
    assert any(1.3 * network.true_us(c.plan) > bound for c in on_the_old_scale)
    assert result.met and 1.3 * network.true_us(result.best.plan) <= bound
    joint = [names for kind, names, *_ in (x for x in network.log if x[0] == "latency") if len(names) > 2]
    assert len(joint) == 2 and set(joint[0]) < set(joint[1])
    assert all(built.closed for built in network.built)


def test_no_plan_is_compiled_for_a_trial_twice():
    network = Synthetic(count=4)
    result = run_search(network, asked("kl<=10", trials=200))
    plans = [c.int8_layers for c in result.trials]
    assert len(plans) == len(set(plans)) <= 16
    assert all(built.closed for built in network.built)


def test_the_front_holds_nothing_that_another_beats():
    result = run_search(Synthetic(count=10), asked("kl<=0.01", trials=20))
    points = [(c.quality.kl, c.latency_us, c.size_bytes) for c in result.front]
    for a, b in itertools.permutations(points, 2):
        assert not (all(x <= y for x, y in zip(a, b, strict=True)) and a != b)
    assert [p[1] for p in points] == sorted(p[1] for p in points)


def test_additivity_compares_the_table_with_the_network():
    network = Synthetic(count=10, overhead_us=2.0)
    result = run_search(network, asked("kl<=10", threads=2))
    assert {a.candidate for a in result.additivity} >= {"float32", "int8"}
    assert [t for kind, _, t in (x for x in network.log if x[0] == "latency") if t] == [1]
    for entry in result.additivity:
        assert entry.relative_error == pytest.approx(entry.predicted_us / entry.measured_us - 1)


def test_everything_is_written(tmp_path):
    network = Synthetic(count=8)
    out = tmp_path / "new" / "found"
    result = run_search(network, asked("kl<=0.01"), out=out)
    assert SearchResult.load(out / "search.json") == result
    assert Plan.load(out / "plan.json") == result.best.plan
    assert result.best.artifact == str(out / "best")
    assert network.saved[out / "best"] == (result.best.plan, result.ledger)
    for candidate in result.front:
        assert Plan.load(out / "front" / f"{candidate.name}.json") == candidate.plan
        if candidate.artifact is not None:
            assert (out / "front" / candidate.name / "manifest.json").is_file()
    names = {p.name for p in out.iterdir()} - {"study.db-wal", "study.db-shm"}
    assert names == {"search.json", "plan.json", "best", "front", "study.db"}


def test_a_folder_that_cannot_be_written_is_an_output_error_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    network = Synthetic()
    with pytest.raises(OutputError, match="file"):
        run_search(network, asked(), out=tmp_path / "file" / "out")
    assert network.log == []


def test_timeout_ends_the_trials_but_not_the_result():
    network = Synthetic(count=12)
    result = run_search(network, asked("kl<=0.01", trials=500, timeout=0.0))
    assert [c.name for c in result.trials] == ["float32", "int8"]
    assert result.best.name == "float32" and result.met
    assert any("time was up" in note for note in result.notes)
    assert all(row.error_share is None and row.predicted_us is None for row in result.ledger)


def test_no_trials_leaves_the_baselines_to_choose_from():
    network = Synthetic(count=6)
    result = run_search(network, asked("kl<=10", trials=0))
    assert len(result.trials) == 2
    assert network.true_us(result.best.plan) <= min(network.true_us(b.plan) for b in result.baselines)


def test_ctrl_c_ends_with_what_is_there():
    class Interrupted(Synthetic):
        def build(self, plan):
            if len(self.built) == 5:
                self.built.append(None)
                raise KeyboardInterrupt
            return super().build(plan)

    network = Interrupted(count=10)
    result = run_search(network, asked("kl<=0.01"))
    assert len(result.trials) == 5 and result.met
    assert any("interrupted" in note for note in result.notes)


def test_ctrl_c_before_the_baselines_is_passed_on():
    class Interrupted(Synthetic):
        def build(self, plan):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_search(Interrupted(), asked())


def test_a_network_without_layers_is_refused():
    with pytest.raises(InputError, match="nothing to choose"):
        run_search(Synthetic(count=0), asked())


def test_a_constraint_on_what_is_not_measured_is_refused():
    with pytest.raises(InputError, match="labels="):
        run_search(Synthetic(), asked("accuracy>=0.5"))


def test_progress_is_told_in_stages():
    seen = []
    run_search(Synthetic(count=6), asked("kl<=0.01"), progress=lambda *event: seen.append(event))
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    assert stages == ["baselines", "sensitivity", "trials", "finalists"]
    assert all(0 <= done <= total for _, done, total in seen)


def test_the_mean_sensitivity_is_over_all_samples():
    network = Synthetic(count=6)
    result = run_search(network, asked("kl<=0.01"))
    assert {n: s.kl for n, s in result.sensitivity.items()} == pytest.approx(network.kl)
    assert network.log.count(("sensitivity", 0)) == 1
    assert explore.front_points(12) == 4
