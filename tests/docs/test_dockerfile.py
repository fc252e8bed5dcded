"""The Dockerfile copies every file that the wheel is built of."""

import re
from pathlib import Path

from quantkit.system.python import tomllib

ROOT = Path(__file__).parents[2]


def test_the_dockerfile_copies_what_the_wheel_is_built_of() -> None:
    lines = re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    copied = {ROOT / source for line in lines for source in line.split()[:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {ROOT / "pyproject.toml", ROOT / project["project"]["readme"], ROOT / "hatch_build.py"}
    needed |= {
        ROOT / name for name in (*project["project"]["license-files"], *wheel["packages"], *wheel["shared-data"])
    }
    needed |= {path.resolve() for path in (ROOT / "quantkit").rglob("*") if path.is_symlink()}
    assert needed <= copied
    assert all(path.exists() for path in copied)
