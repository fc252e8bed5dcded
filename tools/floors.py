"""Print the lowest version of every direct dependency, a requirement a line: what `make audit` looks up."""

from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from quantkit.system.python import tomllib

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def floors(text: str) -> Iterator[str]:
    """NAME==FLOOR of each requirement of a pyproject.toml that states a floor or one version.

    Raises ValueError for a requirement without a floor.
    """
    project = tomllib.loads(text)["project"]
    extras = project.get("optional-dependencies", {})
    # the tools of development are not installed with the package
    named = [*project["dependencies"], *(line for extra, lines in extras.items() if extra != "dev" for line in lines)]
    for line in named:
        requirement = Requirement(line)
        lowest = [part.version for part in requirement.specifier if part.operator in (">=", "==", "~=")]
        if not lowest:
            raise ValueError(f"{line} states no lowest version; add >=")
        yield f"{requirement.name}=={lowest[0]}"


if __name__ == "__main__":
    print("\n".join(floors(PROJECT.read_text("utf-8"))))
