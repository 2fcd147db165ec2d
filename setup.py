"""What pyproject.toml cannot say: an editable install is found from the folder that holds the clone, too.

There, Python takes the clone itself, a folder named fastlr, for a package without code (a namespace), and never asks
the finder that setuptools appends to the others. So that finder is moved in front of them.
"""

import base64
import hashlib
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from setuptools import setup
from setuptools.command.editable_wheel import editable_wheel

FIRST = (
    "import sys; before = len(sys.meta_path); {}; sys.meta_path[:] = sys.meta_path[before:] + sys.meta_path[:before]"
)


class EditableWheel(editable_wheel):
    """setuptools' own, with a finder that comes first."""

    def run(self) -> None:
        super().run()
        for wheel in Path(self.dist_dir).glob("*.editable-*.whl"):
            _rewrite(wheel)


def _rewrite(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (record,) = (name for name in files if name.endswith(".dist-info/RECORD"))
    rows = [row for row in files.pop(record).decode().splitlines() if not row.startswith("__editable__")]
    for name in [name for name in files if name.startswith("__editable__") and name.endswith(".pth")]:
        text = files[name].decode().strip()
        if text.startswith("import "):  # else it is a folder, which needs no finder
            files[name] = FIRST.format(text).encode()
    for name in [name for name in files if name.startswith("__editable__")]:
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(files[name])}")
    files[record] = "".join(f"{row}\n" for row in rows).encode()
    with ZipFile(wheel, "w", ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


setup(cmdclass={"editable_wheel": EditableWheel})
