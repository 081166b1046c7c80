"""Take out of an image's environment what no handler can need, then prove that it still works.

python docker/trim.py cpu    (or gpu, or direct: on the CPU, without torch)

Half of what the wheels bring is headers, their own tests, debug symbols and devices that the image
does not have. Each rule says what goes and why. Packages that go are uninstalled, not torn out, so
that the bill of materials stays true. Standard library only: it runs inside the environment.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_EVERYWHERE = {
    "torch/test": "programs that test torch",
    "torch/include": "headers; nothing is compiled here",
    "torch/share": "files for CMake",
    "torch/lib/lib*_test.so": "libraries that test torch",
    "openvino/include": "headers",
    "openvino/cmake": "files for CMake",
    "openvino/libs/libopenvino_c.so*": "for C programs",
    "torch/testing/_internal/distributed": "test cases of torch",
    "torch/testing/_internal/opinfo": "test cases of torch",
    "torch/testing/_internal/common_[mnoqu]*.py": "test cases of torch",
    "**/*.pyi": "types, for editors",
    "**/*.h": "headers",
    "**/*.px[di]": "headers for Cython",
    "**/*.a": "libraries for compilers",
    "**/*.pyx": "sources of compiled modules",
    "PIL/_avif*.so": "AVIF, which no model reads",
    "pillow.libs/libavif*": "AVIF",
    "PIL/_webp*.so": "WebP, which no model reads",
    "pillow.libs/libwebp*": "WebP",
    "pillow.libs/libsharpyuv*": "WebP",
    "onnxruntime/transformers": "programs that change models",
    "onnxruntime/quantization": "programs that change models",
    "onnxruntime/tools": "programs that change models",
    "openvino/tools": "programs that change models",
    "numpy/distutils": "for building packages",
    "_gdcm/XML": "the standard's tables as text, for gdcm's own programs",
    "pygments/lexers/_[!m]*.py": "words of programming languages that nobody prints",
    "pygments/lexers/[a-oq-rt-z]*.py": "the same; Python and plain text are left",
    "onnxruntime/capi/libonnxruntime.so.*": "for C programs; Python's module contains it all",
    "*/tests": "test cases",
    "scipy/**/tests": "test cases",
    "numpy/**/tests": "test cases",
    "nibabel/**/tests": "test cases and test images",
    "pydicom/data/test_files": "test images",
    "ts/torch_handler/unit_tests": "test cases",
    # A wheel has no links: each library of gdcm lies there under three names, and one is loaded.
    "_gdcm/lib*.so": "copies of libraries",
    "_gdcm/lib*.so.[0-9]*.[0-9]*.[0-9]*": "copies of libraries",
    "_gdcm/libgdcmcharls.so.2.0": "a copy of a library",
}
_CPU = {
    "torch/_dynamo": "torch.compile, which needs a compiler that the image does not have",
    "torch/_inductor": "torch.compile",
    "openvino/libs/libopenvino_intel_gpu_plugin.so": "Intel's graphics processors",
    "openvino/libs/libopenvino_intel_npu_plugin*": "Intel's neural processors",
    "openvino/libs/libopenvino_auto*_plugin.so": "several devices at a time",
    "openvino/libs/libopenvino_hetero_plugin.so": "several devices at a time",
    "openvino/libs/cache.json": "compiled kernels for Intel's graphics processors",
}
# Parts of SciPy that nothing in medserve or the other packages imports, largest first, and those
# that need them in turn. What is left: ndimage, sparse, special, linalg, spatial, fft.
_SCIPY = (
    *("optimize", "stats", "io", "interpolate", "integrate", "signal", "cluster", "odr"),
    *("datasets", "differentiate", "misc"),
)
# Formats that OpenVINO reads; archives carry ONNX.
_FORMATS = ("gguf", "jax", "paddle", "pytorch", "tensorflow", "tensorflow_lite")
# Needed by torch.export and torch.compile, or while installing; `import torch` takes none of them.
# pycparser serves cffi where a module is compiled; cryptography brings its own compiled.
_PACKAGES = ("sympy", "mpmath", "networkx", "pycparser", "setuptools", "wheel")
# Kernels of triton are built when torch.compile asks for them, by a compiler that the image has not
# got; `import torch` and TorchScript take nothing of it. It is an eighth of the image.
_GPU_PACKAGES = ("triton", "setuptools", "wheel")
_KEPT_PROGRAM = "torch_shm_manager"  # without it torch cannot be imported
# What a worker and the container's own process import at their start. Importing them compiles just
# these modules, which halves that time, and shows that nothing needed was removed.
_AT_START = (
    *("grpc", "nibabel", "numpy", "onnxruntime", "openvino", "PIL.PngImagePlugin", "psutil"),
    *("pydicom", "scipy.ndimage", "scipy.sparse", "typer", "yaml"),
)
_BY_DEVICE = {
    "direct": ("fastapi", "grpc.aio", "grpc_health.v1", "jinja2", "prometheus_client", "uvicorn"),
}
_TORCHSERVE = (
    *("torch.jit", "ts.model_loader", "ts.model_service_worker"),
    "ts.metrics.metric_cache_yaml_impl",
)
# Imported for what some requests ask for: shown to work, not compiled.
_ON_DEMAND = (
    "cryptography.hazmat.primitives.asymmetric.ec",
    "gdcm",
    "highdicom",
    "openjpeg",
    "rich",
    "scipy.fft",
    "scipy.linalg",
    "scipy.spatial",
    "scipy.special",
)


def main() -> None:
    """Trim the environment that runs this, for the device named on the command line."""
    device = sys.argv[1]
    packages = Path(sysconfig.get_path("purelib"))
    before = _size_mb(packages)
    uninstall(_GPU_PACKAGES if device == "gpu" else _PACKAGES)
    for path in unneeded(packages, device):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for table in packages.glob("highdicom/_standard/*.json"):  # indented: two thirds are blanks
        content = json.loads(table.read_text(encoding="utf-8"))
        table.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
    if device != "gpu":  # NVIDIA's libraries are stripped already
        strip(packages)
    uninstall(("pip",))
    at_start = (*_AT_START, *_BY_DEVICE.get(device, _TORCHSERVE))
    subprocess.run([sys.executable, "-c", f"import {', '.join(at_start)}"], check=True)
    subprocess.run([sys.executable, "-B", "-c", f"import {', '.join(_ON_DEMAND)}"], check=True)
    print(f"{packages}: {before} MB before, {_size_mb(packages)} MB now")


def unneeded(packages: Path, device: str) -> Iterator[Path]:
    """Every file and folder that the rules name."""
    patterns = [*_EVERYWHERE, *(() if device == "gpu" else _CPU)]
    patterns += [f"scipy/{name}" for name in _SCIPY]
    patterns += [f"openvino/libs/libopenvino_{name}_frontend.so*" for name in _FORMATS]
    patterns += [f"openvino/frontend/{name}" for name in _FORMATS]
    found = {path for pattern in patterns for path in packages.glob(pattern)}
    found |= {path for path in packages.glob("torch/bin/*") if path.name != _KEPT_PROGRAM}
    # A folder takes its content with it.
    return (path for path in sorted(found) if not found.intersection(path.parents))


def strip(packages: Path) -> None:
    """Remove symbol tables, which only a debugger reads: a fifth of torch, most of two codecs.

    Only libraries that stand alone: those of wheels with a folder NAME.libs were rewritten when the
    wheel was made, which strip may not survive.
    """
    patterns = (
        *("torch/lib/*.so", "_CharLS*.so", "yaml/*.so", "_openjpeg*.so", "_cffi_backend*.so"),
        "cryptography/hazmat/bindings/*.so",
    )
    libraries = sorted(path for pattern in patterns for path in packages.glob(pattern))
    if libraries:
        subprocess.run(["strip", "--strip-unneeded", *libraries], check=True)


def uninstall(names: tuple[str, ...]) -> None:
    """Remove whole packages."""
    subprocess.run(
        [sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *names], check=True
    )


def _size_mb(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*")) // 10**6


if __name__ == "__main__":
    main()
