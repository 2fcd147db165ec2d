"""What the installed package contains; editable installs do not notice what is missing."""

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

import fastlr

tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
ROOT = Path(__file__).parents[1]


def test_all_packages_are_listed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = set()
    for name, folder in settings["package-dir"].items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([name, *init.parent.relative_to(ROOT / folder).parts]))
    assert found == set(settings["packages"])


@pytest.fixture
def installed(tmp_path):
    """A folder of packages with an editable install of a clone that is named as the package is."""
    pytest.importorskip("setuptools", minversion="77")
    clone, site = tmp_path / "fastlr", tmp_path / "site"
    clone.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone / name)
    for name in ("fastlr", "kernels", "bench"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    build = "import sys; from setuptools.build_meta import build_editable; print(build_editable(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        wheel.extractall(site)
        (record,) = (name for name in wheel.namelist() if name.endswith("RECORD"))
        listed = {row.split(",")[0] for row in wheel.read(record).decode().splitlines()}
        assert listed == set(wheel.namelist())
    return clone, site


@pytest.mark.parametrize("where", [".", "fastlr", "site"])
def test_an_editable_install_is_found_everywhere(installed, where):
    """Beside the clone, too, where its folder looks like a package without code."""
    clone, site = installed
    others = [path for path in sys.path if path.endswith("-packages")]
    code = (  # without the environment's own install
        f"import site, sys; sys.path += {[str(site), *others]}; site.addsitedir({str(site)!r})\n"
        "import fastlr, fastlr.kernels, fastlr.bench\n"
        "print(fastlr.__version__, *(package.__path__[0] for package in (fastlr, fastlr.kernels, fastlr.bench)))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=clone.parent / where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [fastlr.__version__, *(str(clone / name) for name in ("fastlr", "kernels", "bench"))]
