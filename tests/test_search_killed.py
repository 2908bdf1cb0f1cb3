"""The real search, compiling and measuring, killed in the middle and started again."""

import json
import os
import signal
import sqlite3
import subprocess
import sys

import bitsmith
import numpy as np
from bitsmith.search.result import SearchResult
from digit_net import samples, write_net

TRIALS = 2
PROGRAM = """
import os, signal, sys
import numpy as np
import bitsmith

out, stage, count = sys.argv[1], sys.argv[2], int(sys.argv[3])

def progress(name, done, total):
    if (name, done) == (stage, count):
        os.kill(os.getpid(), signal.SIGKILL)

data = np.load("samples.npy")
bitsmith.search(
    bitsmith.load("net.onnx", shapes={"batch": 1}), calibration=data[:12], evaluate=data[12:], trials=2,
    constraints=["kl<=0.05"], out=out, progress=progress,
)
"""
STOPS = (("baselines", 1), ("trials", 1), ("finalists", 1))


def finished(study):
    """The finished trials as they are stored, read without the code under test."""
    if not study.exists():
        return {}
    with sqlite3.connect(study) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = db.execute(
            "SELECT t.number, a.value_json FROM trial_user_attributes a "
            "JOIN trials t ON t.trial_id = a.trial_id WHERE a.key = 'candidate' AND t.state = 'COMPLETE'"
        )
        return {number: json.loads(text) for number, text in rows}


def test_a_search_killed_again_and_again_loses_and_repeats_nothing(tmp_path):
    write_net(tmp_path / "net.onnx")
    np.save(tmp_path / "samples.npy", samples(36))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(temporary)}
    out, before = tmp_path / "out", {}
    for stage, count in (*STOPS, ("never", 0)):
        command = [sys.executable, "-c", PROGRAM, str(out), stage, str(count)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == (0 if stage == "never" else -signal.SIGKILL), (stage, done.stderr)
        left = len(list(temporary.glob("bitsmith-*/*/model.so")))
        assert left == 0 if stage == "never" else left > 0, "killed while it had artifacts open"
        now = finished(out / "study.db")
        assert {number: now[number] for number in before} == before, f"trials were lost at {stage}"
        before = now
    assert not list(temporary.glob("bitsmith-*"))
    plans = [json.dumps(candidate["plan"], sort_keys=True) for candidate in before.values()]
    assert len(plans) == len(set(plans)) == 2 + TRIALS
    result = SearchResult.load(out / "search.json")
    assert result.met and {c.name for c in result.trials} == {c["name"] for c in before.values()}
    with bitsmith.open(result.best.artifact) as artifact:
        assert artifact.plan == result.best.plan.to_json()
    assert sorted(f.name for f in out.iterdir() if not f.name.startswith("study.db")) == [
        *("best", "front", "plan.json", "ranges.json", "search.json")
    ]
