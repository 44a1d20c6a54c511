"""Delete what no service of the control image loads: `prune_control_image.py SITE_PACKAGES`.

The list below is the only one. Dockerfile.control applies it, and tests/chart/test_control_image.py
applies it to a copy of this environment and runs operator, monitor and proxy from there.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

#: Globs relative to site-packages. An entry that names nothing in another release frees nothing.
PRUNED = (
    # generated classes for each kind of the API and its operations, twice; they are imported by name,
    # and the dynamic client takes and gives plain objects instead
    "kubernetes/client/api",
    "kubernetes/client/apis",
    "kubernetes/client/models/[!_]*",
    "kubernetes/aio/client/api",
    "kubernetes/aio/client/models/[!_]*",
    # the runtime's C library: Python's binding is linked with a copy of its own
    "onnxruntime/capi/libonnxruntime.so.*",
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "onnxruntime/transformers",
    "onnx/backend",
    "onnx/reference",
    # Arrow's clients of other systems; the object store is reached by minio
    "pyarrow/libarrow_flight*",
    "pyarrow/libarrow_python_flight*",
    "pyarrow/_flight*",
    "pyarrow/libarrow_s3*",
    "pyarrow/_s3fs*",
    # twins of the file with the short version, whose name all others are linked with
    "pyarrow/libarrow_python*.so",
    "pyarrow/libarrow_python*.so.*.*",
    "pyarrow/include",
    "pyarrow/includes",
    "pyarrow/src",
    "numpy/distutils",
    "numpy/f2py",
    # minio encrypts administrators' requests by it: ciphers, no public keys
    "Crypto/PublicKey",
    "Crypto/SelfTest",
    # tests, and what only compilers and type checkers read
    "**/tests",
    "**/*.pyi",
    "**/*.pyx",
    "**/*.pxi",
    "**/*.pxd",
)


def prune(packages: Path) -> dict[str, int]:
    """Delete what the list names below site-packages; gives the bytes that each entry freed, 0 where
    it names nothing there.
    """
    freed = {}
    for pattern in PRUNED:
        # outermost first; what is inside goes with it
        found = sorted(packages.glob(pattern), key=lambda path: len(path.parts))
        freed[pattern] = sum(_delete(path) for path in found if path.exists())
    return freed


def _delete(path: Path) -> int:
    """Bytes that went."""
    if not path.is_dir():
        size = path.lstat().st_size
        path.unlink()
        return size
    size = sum(one.lstat().st_size for one in path.rglob("*") if not one.is_dir())
    shutil.rmtree(path)
    return size


def main() -> None:
    """The command."""
    for pattern, size in prune(Path(sys.argv[1])).items():
        sys.stdout.write(f"{size:12,} bytes  {pattern}\n")


if __name__ == "__main__":
    main()
