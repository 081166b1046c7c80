"""The handler as a worker finds it: unpacked from an archive, the repository out of reach."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import handlers
import medserve
from tests.artifacts import BRIGHTNESS_CONFIG

REPOSITORY = Path(medserve.__file__).parent.parent
WORKER = """
import json, sys
from pathlib import Path
import mednist
classes = [each for each in vars(mednist).values()
           if isinstance(each, type) and each.__module__ == "mednist"]
class Context:
    system_properties = {"model_dir": sys.path[0], "gpu_id": None}
    model_yaml_config, model_name, metrics = None, "brightness", None
    def get_request_id(self, index=0): return "id"
    def set_response_header(self, index, key, value): pass
worker = classes[0]()
worker.initialize(Context())
answer = worker.handle([{"data": bytearray(Path("golden_input.png").read_bytes())}], Context())
import medserve, handlers
print(json.dumps({
    "classes": [each.__name__ for each in classes],
    "origins": [medserve.__file__, handlers.__file__, mednist.__file__],
    "modules": sorted(name for name, module in sys.modules.items() if module),
    "answer": json.loads(answer[0]),
}))
"""


pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def report(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("unpacked")
    shutil.copytree(artifact, folder, dirs_exist_ok=True)
    skipped = shutil.ignore_patterns("__pycache__", "mednist.py")
    shutil.copytree(Path(handlers.__file__).parent, folder / "handlers", ignore=skipped)
    shutil.copy(Path(handlers.__file__).parent / "mednist.py", folder)
    (folder / "medserve").mkdir()
    for file in ("__init__.py", "cores.py", "errors.py", "tracing.py"):
        shutil.copy(REPOSITORY / "medserve" / file, folder / "medserve")
    for package in ("spec", "tasks", "imaging", "results", "inference"):
        source = REPOSITORY / "medserve" / package
        shutil.copytree(source, folder / "medserve" / package, ignore=skipped)
    (folder / "model-config.yaml").write_text(yaml.safe_dump(BRIGHTNESS_CONFIG))
    (folder / "worker.py").write_text(WORKER)
    done = subprocess.run(
        [sys.executable, "-W", "error", "worker.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    content: dict[str, object] = json.loads(done.stdout)
    content["folder"] = str(folder)
    return content


def test_all_code_of_ours_comes_from_the_archive(report: dict[str, object]) -> None:
    origins = report["origins"]
    assert isinstance(origins, list)
    assert all(str(origin).startswith(str(report["folder"])) for origin in origins)


def test_the_handler_file_has_exactly_one_class(report: dict[str, object]) -> None:
    assert report["classes"] == ["MednistHandler"]


def test_the_golden_picture_is_answered(report: dict[str, object]) -> None:
    answer = report["answer"]
    assert isinstance(answer, dict)
    assert answer["label"] == "middle"


def test_a_worker_on_openvino_imports_no_other_engine(report: dict[str, object]) -> None:
    modules = report["modules"]
    assert isinstance(modules, list)
    assert not {"torch", "onnxruntime", "ts", "models", "training"} & set(modules)


def test_openvino_reports_to_nobody(report: dict[str, object]) -> None:
    modules = report["modules"]
    assert isinstance(modules, list)
    assert "openvino" in modules
    assert "openvino_telemetry" not in modules
