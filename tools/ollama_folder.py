"""The Modelfiles in ollama/ that are made from recipes/: `make ollama` writes them, a test keeps them so."""

from pathlib import Path

from quantkit.recipes.ollama import modelfiles, ollama_recipe
from quantkit.recipes.reading import open_recipe

ROOT = Path(__file__).resolve().parents[1]
FOLDER, RECIPES = ROOT / "ollama", ROOT / "recipes"


def expected() -> dict[str, str]:
    """Path below ollama/ -> text."""
    return {
        f"{path.stem}/{name}": text for path in sorted(RECIPES.glob("*.toml")) for name, text in _texts(path).items()
    }


def _texts(path: Path) -> dict[str, str]:
    """None for a model that keeps its checkpoint's own chat template: only its GGUF knows it."""
    opened = open_recipe(path)
    if opened.get("model", "chat_template") is None:
        return {}
    return modelfiles(ollama_recipe(opened))


def present() -> dict[str, str]:
    return {
        path.relative_to(FOLDER).as_posix(): path.read_text("utf-8")
        for path in sorted(FOLDER.rglob("*"))
        if path.is_file()
    }


if __name__ == "__main__":
    wanted = expected()
    for name in present().keys() - wanted.keys():
        (FOLDER / name).unlink()
    for name, text in wanted.items():
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / name).write_text(text, "utf-8")
