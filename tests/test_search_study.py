"""The study: a search that was killed goes on and loses nothing that was finished; faults of storages."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from bitsmith.compiler.errors import InputError
from bitsmith.search.engine import run_search
from bitsmith.search.objectives import parse_constraints
from bitsmith.search.session import Settings
from bitsmith.search.study import open_study
from synthetic_search import Synthetic

HERE = Path(__file__).parent
TRIALS = 8
ASKED = Settings(constraints=parse_constraints(["kl<=0.005"]), trials=TRIALS)
WORKER = """
import sys
sys.path.insert(0, sys.argv[2])
from bitsmith.search.engine import run_search
from bitsmith.search.objectives import parse_constraints
from bitsmith.search.session import Settings
from synthetic_search import Synthetic

def say(stage, done, total):
    print(stage, done, flush=True)

asked = Settings(constraints=parse_constraints(["kl<=0.005"]), trials=int(sys.argv[3]))
run_search(Synthetic(count=8, delay=float(sys.argv[4])), asked, out=sys.argv[1], progress=say)
"""


def killed_at(out, stage, done, delay=0.02):
    """Runs the search in a process of its own and kills it a moment after it reports that stage."""
    command = [sys.executable, "-c", WORKER, str(out), str(HERE), str(TRIALS), str(delay)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            if line.split() == [stage, str(done)]:
                break
        time.sleep(0.03 + delay / 2)  # into the middle of what was announced
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, f"the search ended before it came to {stage} {done}"


def measured(trials):
    """What each trial's own run said; the scale of microseconds is fixed anew by each search's last run."""
    return [(c.name, c.plan, c.quality, c.latency, c.size_bytes, c.feasible, c.origin) for c in trials]


def finished_trials(out):
    """Names and times of the finished trials, read without the code under test."""
    with sqlite3.connect(out / "study.db") as db:
        rows = db.execute(
            "SELECT a.value_json FROM trial_user_attributes a JOIN trials t ON t.trial_id = a.trial_id "
            "WHERE a.key = 'candidate' AND t.state = 'COMPLETE' ORDER BY t.number"
        )
        return [(c["name"], c["latency"], c["plan"]) for c in (json.loads(r[0]) for r in rows)]


@pytest.mark.parametrize(
    ("stage", "done"),
    [("baselines", 0), ("baselines", 1), ("sensitivity", 1), ("trials", 2), ("finalists", 1)],
)
def test_a_killed_search_goes_on_where_it_was(tmp_path, stage, done):
    killed_at(tmp_path, stage, done)
    before = finished_trials(tmp_path)
    network = Synthetic(count=8)
    result = run_search(network, ASKED, out=tmp_path)
    after = {c.name: (c.name, c.latency.to_json(), c.plan.to_json()) for c in result.trials}
    assert [after[name] for name, *_ in before] == before
    known = {frozenset(n for n, f in p["layers"].items() if f["weights"] == "int8") for _, _, p in before}
    trials_built = {c.int8_layers for c in result.trials} - known
    assert len(result.trials) == 2 + TRIALS and len(trials_built) == 2 + TRIALS - len(before)
    assert result.met
    with sqlite3.connect(tmp_path / "study.db") as db:
        states = dict(db.execute("SELECT state, COUNT(*) FROM trials GROUP BY state"))
    assert states.pop("COMPLETE") >= 2 + TRIALS
    assert set(states) <= {"FAIL"}


def test_a_plan_under_way_when_it_was_killed_is_queued_again(tmp_path):
    killed_at(tmp_path, "trials", 3, delay=0.5)
    with sqlite3.connect(tmp_path / "study.db") as db:
        running = db.execute("SELECT COUNT(*) FROM trials WHERE state = 'RUNNING'").fetchone()[0]
    network = Synthetic(count=8)
    result = run_search(network, ASKED, out=tmp_path)
    with sqlite3.connect(tmp_path / "study.db") as db:
        failed = db.execute("SELECT trial_id FROM trials WHERE state = 'FAIL'").fetchall()
        finished = db.execute("SELECT trial_id FROM trials WHERE state = 'COMPLETE'").fetchall()
        plans = {i: dict(db.execute(PARAMS, (i,)).fetchall()) for (i,) in failed + finished}
    assert len(failed) == running == 1
    assert plans[failed[0][0]] in [plans[i] for (i,) in finished]
    assert any("went on from" in note for note in result.notes)


PARAMS = "SELECT param_name, param_value FROM trial_params WHERE trial_id = ?"


def test_sensitivities_are_not_measured_again(tmp_path):
    killed_at(tmp_path, "sensitivity", 2, delay=0.5)
    network = Synthetic(count=8)
    run_search(network, ASKED, out=tmp_path)
    assert ("sensitivity", 0) not in network.log and ("sensitivity", 2) in network.log


def test_a_finished_search_only_measures_its_finalists_again(tmp_path):
    first = run_search(Synthetic(count=8), ASKED, out=tmp_path)
    network = Synthetic(count=8)
    second = run_search(network, ASKED, out=tmp_path)
    assert measured(second.trials) == measured(first.trials) and second.best.plan == first.best.plan
    assert sum(kind == "build" for kind, *_ in network.log) <= 10


def test_more_trials_may_be_asked_for_later(tmp_path):
    first = run_search(Synthetic(count=8), ASKED, out=tmp_path)
    second = run_search(Synthetic(count=8), replace(ASKED, trials=TRIALS + 5), out=tmp_path)
    assert measured(second.trials[: len(first.trials)]) == measured(first.trials)
    assert len(second.trials) == 2 + TRIALS + 5


@pytest.mark.parametrize(
    ("changed", "network", "named"),
    [
        (
            {},
            Synthetic(identity={"graph": "other", "target": "formula"}),
            "graph: synthetic there, other here",
        ),
        (
            {},
            Synthetic(identity={"graph": "synthetic", "target": "zen9"}),
            "target: formula there, zen9 here",
        ),
        ({"threads": 2}, Synthetic(), "threads: 1 there, 2 here"),
        ({"objectives": ("quality", "latency")}, Synthetic(), "objectives: quality, latency, size there"),
        ({"constraints": parse_constraints(["kl<=0.1"])}, Synthetic(), "kl<=0.005 there, kl<=0.1 here"),
    ],
)
def test_a_study_of_something_else_is_refused_with_the_difference(tmp_path, changed, network, named):
    run_search(Synthetic(), replace(ASKED, trials=0), out=tmp_path)
    with pytest.raises(InputError, match=named):
        run_search(network, replace(ASKED, trials=0, **changed), out=tmp_path)


def test_any_optuna_storage_url_will_do(tmp_path):
    url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    first = run_search(Synthetic(count=6), replace(ASKED, trials=3), study=url)
    again = run_search(Synthetic(count=6), replace(ASKED, trials=3), study=url)
    assert measured(again.trials) == measured(first.trials)


def test_a_path_will_do_and_beats_the_default(tmp_path):
    run_search(
        Synthetic(count=4), replace(ASKED, trials=1), study=tmp_path / "sub" / "my.db", out=tmp_path / "out"
    )
    assert (tmp_path / "sub" / "my.db").exists() and not (tmp_path / "out" / "study.db").exists()


def test_without_a_place_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_search(Synthetic(count=4), replace(ASKED, trials=2))
    assert list(tmp_path.iterdir()) == []


def test_two_searches_may_share_a_study(tmp_path):
    command = [sys.executable, "-c", WORKER, str(tmp_path / "a"), str(HERE), "0", "0"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    url = tmp_path / "a" / "study.db"
    one = open_study(url, "bitsmith synthetic", SHARED, [f"layer{i}" for i in range(8)], ASKED.objectives)
    claimed = one.waiting()
    one.enqueue({f"layer{i}": "int8" if i < 3 else "float32" for i in range(8)}, "allocation")
    running = one.ask()
    two = open_study(url, "bitsmith synthetic", SHARED, [f"layer{i}" for i in range(8)], ASKED.objectives)
    assert claimed == 0 and running.origin == "allocation"
    assert two.recover() == 0, "the process that measures it is alive"
    assert two.waiting() == 0


SHARED = {
    "graph": "synthetic",
    "target": "formula",
    "objectives": "quality, latency, size",
    "constraints": "kl<=0.005",
    "threads": "1",
}


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ("nosuchdb://x", "cannot be opened"),
        ("{tmp}/garbage.db", "damaged or no study"),
        ("{tmp}", "unable to open"),
    ],
)
def test_a_bad_storage_is_named(tmp_path, study, message):
    (tmp_path / "garbage.db").write_text("this is no database " * 300)
    place = study.replace("{tmp}", str(tmp_path))
    with pytest.raises((InputError, OSError), match=message) as caught:
        run_search(Synthetic(), ASKED, study=place)
    assert place in str(caught.value)
