"""Builds the kernels, once for each instruction set, with the clang of the `ziglang` wheel.

Run by setup.py when the package is built or installed, so that a machine needs no compiler of its
own. Without the wheel, or on a system that is not listed, nothing is built, and products use
PyTorch's operators.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

FLAGS = ("-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-fno-sanitize=all", "-g0", "-s", "-lm")

# System and machine -> instruction set -> the compiler's flags for it.
LINUX_X86, LINUX_ARM = ("-target", "x86_64-linux-gnu.2.28"), ("-target", "aarch64-linux-gnu.2.28")
VARIANTS: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {
    ("Linux", "x86_64"): {
        "avx512": (*LINUX_X86, "-march=x86_64_v4"),
        "avx2": (*LINUX_X86, "-march=x86_64_v3"),
    },
    ("Linux", "aarch64"): {"neon": LINUX_ARM},
    ("Darwin", "x86_64"): {"avx2": ("-target", "x86_64-macos", "-march=x86_64_v3")},
    ("Darwin", "arm64"): {"neon": ("-target", "aarch64-macos")},
}


def library_name(variant: str) -> str:
    return f"_kernels_{variant}.so"


def build(target: Path) -> list[Path]:
    """Compile every variant of this machine's kind into the directory `target`.

    Raises:
        OSError, subprocess.CalledProcessError: the compiler is missing, or failed.
    """
    sources = [str(path) for path in sorted(Path(__file__).parent.glob("*.c"))]
    command = [sys.executable, "-m", "ziglang", "cc", *FLAGS, *sources]
    built = []
    for variant, flags in VARIANTS.get((platform.system(), platform.machine()), {}).items():
        out = target / library_name(variant)
        subprocess.run([*command, *flags, "-o", str(out)], check=True)
        built.append(out)
    return built


if __name__ == "__main__":
    for path in build(Path(__file__).parent):
        print(path)
