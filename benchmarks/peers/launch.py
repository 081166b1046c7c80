"""Start the peers that are installed: each a process of its own on a free port of loopback.

LitServe and Triton may live in another virtual environment: MEDSERVE_BENCH_PEERS names its Python.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from benchmarks.contenders import Running, Setting, Unavailable, await_answer
from benchmarks.processes import free_port, spawn

__all__ = ["bare_grpc", "litserve", "served", "triton", "triton_onnxruntime"]

_ROOT = Path(__file__).parent.parent.parent
_CONFIG = """\
backend: "python"
max_batch_size: 16
input [{{ name: "image" data_type: TYPE_STRING dims: [1] }}]
output [{{ name: "answer" data_type: TYPE_STRING dims: [1] }}]
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
instance_group [{{ count: {workers} kind: KIND_CPU }}]
"""


@contextlib.contextmanager
def served(setting: Setting, store: Path, gather: int = 32) -> Iterator[Running]:
    """TorchServe and the gateway before it, in this environment."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.peers.served", f"--store={store}"]
    command += [f"--workers={setting.workers}", f"--threads={setting.threads}"]
    command += [f"--port={port}", f"--gather={gather}"]
    environment = setting.environment() | {"PYTHONPATH": str(_ROOT)}
    log = setting.scratch / f"served-{port}.log"
    with spawn(command, log, environment=environment, cwd=setting.scratch) as process:
        yield await_answer("predictions", f"127.0.0.1:{port}", setting, process, log)


@contextlib.contextmanager
def bare_grpc(setting: Setting) -> Iterator[Running]:
    """A grpc.aio server with a small dynamic batcher, in this environment."""
    with _module("grpc_server", sys.executable, "predictions", setting) as running:
        yield running


@contextlib.contextmanager
def litserve(setting: Setting) -> Iterator[Running]:
    """LitServe, from the peers' environment."""
    python = _python_with("litserve", setting)
    with _module("litserve_app", python, "http", setting) as running:
        yield running


@contextlib.contextmanager
def triton(setting: Setting) -> Iterator[Running]:
    """Triton's Python backend, from the wheel of nvidia-pytriton."""
    python = _python_with("pytriton", setting)
    home = Path(_run(python, "import pytriton; print(pytriton.__path__[0])")) / "tritonserver"
    site = home.parent.parent
    repository = _triton_repository(setting)
    backends = _triton_backends(home, python, setting.scratch)
    port = free_port()
    command = [str(home / "bin" / "tritonserver"), f"--model-repository={repository}"]
    command += [f"--backend-directory={backends}", f"--grpc-port={port}"]
    command += ["--grpc-address=127.0.0.1", "--allow-http=false", "--allow-metrics=false"]
    command += ["--log-info=false", "--log-warning=false", "--disable-auto-complete-config"]
    libraries = [str(site / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR") or ""]
    environment = setting.environment() | {
        "MEDSERVE_BENCH_ARCHIVE_DIR": str(setting.archive_dir),
        "MEDSERVE_BENCH_PATH": os.pathsep.join([str(_ROOT), str(site)]),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
    }
    log = setting.scratch / "triton.log"
    with spawn(command, log, environment=environment, cwd=setting.scratch) as process:
        yield await_answer("oip", f"127.0.0.1:{port}", setting, process, log)


@contextlib.contextmanager
def triton_onnxruntime(setting: Setting) -> Iterator[Running]:
    """Triton's Python backend on ONNX Runtime, whatever engine the others run."""
    with triton(setting.with_engine("onnxruntime")) as running:
        yield running


@contextlib.contextmanager
def _module(name: str, python: str, protocol: str, setting: Setting) -> Iterator[Running]:
    """Run `benchmarks.peers.<name>` with `python`."""
    port = free_port()
    command = [python, "-m", f"benchmarks.peers.{name}", "--port", str(port)]
    command += ["--archive-dir", str(setting.archive_dir), "--workers", str(setting.workers)]
    environment = setting.environment() | {"PYTHONPATH": str(_ROOT)}
    log = setting.scratch / f"{name}.log"
    with spawn(command, log, environment=environment, cwd=setting.scratch) as process:
        yield await_answer(protocol, f"127.0.0.1:{port}", setting, process, log)


def _python_with(package: str, setting: Setting) -> str:
    """A Python that can import `package`; Unavailable if there is none."""
    for python in filter(None, (setting.peers_python, sys.executable)):
        with contextlib.suppress(subprocess.CalledProcessError, OSError):
            _run(python, f"import importlib.util as u; assert u.find_spec({package!r})")
            return python
    raise Unavailable(f"{package} is not installed here nor in the environment of --peers-python")


def _run(python: str, code: str) -> str:
    run = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return run.stdout.strip()


def _triton_repository(setting: Setting) -> Path:
    """One model folder as Triton wants it."""
    repository = setting.scratch / "triton_models"
    folder = repository / setting.model
    (folder / "1").mkdir(parents=True)
    config = _CONFIG.format(workers=setting.workers)
    (folder / "config.pbtxt").write_text(config, encoding="ascii")
    shutil.copyfile(Path(__file__).with_name("triton_model.py"), folder / "1" / "model.py")
    return repository


def _triton_backends(home: Path, python: str, scratch: Path) -> Path:
    """The wheel's backend folder with the stub for this version of Python, left as it is there."""
    version = _run(python, "import sys; print('%d.%d' % sys.version_info[:2])")
    stub = home / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise Unavailable(f"nvidia-pytriton has no Python backend for Python {version}")
    backends = scratch / "triton_backends"
    shutil.copytree(home / "backends", backends)
    shutil.copy2(stub, backends / "python" / stub.name)
    return backends
