"""Mutation testing: small faults are put into the algorithms one by one, and the tests of their room must notice.

`python -m tools.mutation [--mutants N] [--floor SHARE]`, part of `make test-full`. A mutant changes one operator,
comparison or number. It is killed when a test fails or hangs. Survivors are listed: each is a missing test, or a change
without effect. The same seed gives the same mutants.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {
    "quantkit/quant/awq.py": ["tests/quant/test_awq.py"],
    "quantkit/quant/gptq.py": ["tests/quant/test_gptq.py"],
    "quantkit/quant/rounding.py": ["tests/quant/test_rounding.py", "tests/quant/test_awq.py"],
    "quantkit/quant/fold.py": ["tests/quant/test_fold.py"],
    "quantkit/gguf/mix.py": ["tests/gguf/test_mix.py"],
    "quantkit/gguf/mix_rules.py": ["tests/gguf/test_mix.py"],
}
SECONDS = 120
_OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Mutant:
    """One fault: the file, its line, the change in words, the text of the file with it."""

    file: str
    line: int
    change: str
    text: str


def mutants_of(file: str) -> list[Mutant]:
    """Every mutant of a file."""
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    return [
        Mutant(file, line, change, ast.unparse(mutated))
        for number, node in enumerate(ast.walk(tree))
        for line, change, mutated in _mutations(tree, number, node)
    ]


def _mutations(tree: ast.Module, number: int, node: ast.AST) -> Iterator[tuple[int, str, ast.Module]]:
    line = getattr(node, "lineno", 0)
    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in _OPERATORS:
        other = _OPERATORS[type(node.op)]
        yield line, f"{type(node.op).__name__} -> {other.__name__}", _replaced(tree, number, op=other())
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _OPERATORS:
        other = _OPERATORS[type(node.ops[0])]
        yield line, f"{type(node.ops[0]).__name__} -> {other.__name__}", _replaced(tree, number, ops=[other()])
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        yield line, f"{node.value} -> {node.value + 1}", _replaced(tree, number, value=node.value + 1)


def _replaced(tree: ast.Module, number: int, **fields: object) -> ast.Module:
    mutated = copy.deepcopy(tree)
    node = next(node for index, node in enumerate(ast.walk(mutated)) if index == number)
    for name, value in fields.items():
        setattr(node, name, value)
    return ast.fix_missing_locations(mutated)


def is_killed(mutant: Mutant, copy_of_project: Path) -> bool:
    """Whether a test fails, or does not end, with the mutant in place."""
    path = copy_of_project / mutant.file
    original = path.read_text("utf-8")
    path.write_text(mutant.text, "utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not full"]
    try:
        done = subprocess.run(
            [*command, *TARGETS[mutant.file]],
            cwd=copy_of_project,
            env={**os.environ, "PYTHONPATH": str(copy_of_project)},
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return True
    finally:
        path.write_text(original, "utf-8")
    return done.returncode != 0


def main() -> int:
    """Print the survivors and the share of killed mutants; 1 when the share is under the floor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=40)
    parser.add_argument("--floor", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    everything = [mutant for file in TARGETS for mutant in mutants_of(file)]
    chosen = random.Random(options.seed).sample(everything, min(options.mutants, len(everything)))
    survivors = []
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        project = Path(folder)
        for name in ("quantkit", "tests", "demo", "tools"):
            shutil.copytree(ROOT / name, project / name, symlinks=False)
        shutil.copy(ROOT / "pyproject.toml", project)
        for mutant in chosen:
            if not is_killed(mutant, project):
                survivors.append(mutant)
                print(f"survived: {mutant.file}:{mutant.line}: {mutant.change}", flush=True)
    killed = 1 - len(survivors) / len(chosen)
    print(f"{killed:.0%} of {len(chosen)} mutants killed (of {len(everything)}; floor {options.floor:.0%})")
    return 0 if killed >= options.floor else 1


if __name__ == "__main__":
    sys.exit(main())
