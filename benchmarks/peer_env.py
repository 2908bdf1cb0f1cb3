"""Environments of the peers: one for each engine, made on first use, with exact versions.

NNCF and ONNX Runtime's quantizer want other versions than the project does, and of two engines that share an
environment the one that fails to install would take the other with it.
"""

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

from peer_turns import PeerError

HERE = Path(__file__).resolve().parent
PEERS = ("onnxruntime", "openvino")
ENGINES = (*PEERS, "llama_cpp")
"""Those with an environment of their own."""
# NNCF and OpenVINO report their use over the network unless they believe to be in continuous integration.
QUIET = {"CI": "true", "NNCF_CI": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONWARNINGS": "ignore"}


def cache_dir() -> Path:
    """For environments and prepared models: bitsmith/peers in $XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitsmith" / "peers"


def requirements(engine: str) -> Path:
    return HERE / "requirements" / f"{engine}.txt"


def environment(engine: str, root: Path, say: Callable[[str], None]) -> Path:
    """The python of `engine`'s environment under `root`, made if it is not there yet; `say` gets each step.

    The project's own engine has the project's own python. Raises PeerError with pip's reason when it cannot
    be made.
    """
    if engine not in ENGINES:
        return Path(sys.executable)
    wanted = requirements(engine).read_text(encoding="utf-8")
    folder = root / engine
    python, stamp = folder / "bin" / "python", folder / "complete.txt"
    # The stamp is written last: an install that was interrupted, or one of other versions, is made again.
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted and python.exists():
        return python
    say(f"{engine}: making its environment in {folder}")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PeerError(f"its environment cannot be made: {error}") from error
    _install(engine, python, say)
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _install(engine: str, python: Path, say: Callable[[str], None]) -> None:
    """Runs pip, tells its steps, and raises PeerError with its last error."""
    command = [str(python), "-m", "pip", "install", "--progress-bar", "off", "-r", str(requirements(engine))]
    last_error = "pip failed without a message"
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **QUIET}
    ) as pip:
        assert pip.stdout is not None
        try:
            for line in pip.stdout:
                say(f"{engine}: {line.strip()[:100]}")
                if line.startswith("ERROR:"):
                    last_error = line.removeprefix("ERROR:").strip()
        finally:
            if sys.exc_info()[0] is not None:
                pip.kill()
    if pip.returncode:
        raise PeerError(f"pip could not install it: {last_error}")
