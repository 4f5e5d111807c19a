"""Builds the kernels with the package; everything else about it is in pyproject.toml.

Without the compiler, or where it fails, the package is built without kernels, and says so.
"""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

KERNELS = Path("skynet") / "kernels"


class BuildWithKernels(build_py):
    """Compiles the kernels into the built package, or beside their source if it is editable."""

    def run(self) -> None:
        super().run()
        target = Path() if self.editable_mode else Path(self.build_lib)
        build = runpy.run_path(str(KERNELS / "build.py"))["build"]
        try:
            build(target / KERNELS)
        except (OSError, subprocess.CalledProcessError) as error:
            self.warn(f"the kernels were not built, products will be slower: {error}")


class PlatformDistribution(Distribution):
    """A distribution that holds compiled code."""

    def has_ext_modules(self) -> bool:
        return True


class AnyPythonWheel(bdist_wheel):
    """The kernels depend on the platform, not on the version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    cmdclass={"build_py": BuildWithKernels, "bdist_wheel": AnyPythonWheel},
    distclass=PlatformDistribution,
)
