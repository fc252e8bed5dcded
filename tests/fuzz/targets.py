"""Every kind of file that quantkit reads: a sound file as the seed, and what reads it."""

import gzip
import importlib
import importlib.util
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from quantkit.journal import Journal
from quantkit.measurement.reading import load_report, read_report
from quantkit.recipes import read_recipe
from quantkit.recipes.bake.journal import BakeJournal
from quantkit.recipes.ollama import ollama_recipe
from quantkit.recipes.writing import write_recipe
from quantkit.texts.documents import read_documents
from tests.fuzz.checkpoint_targets import checkpoint_targets
from tests.fuzz.target import Target, command
from tests.helpers.command import quantkit_here
from tests.helpers.tiny import tiny_llama
from tests.report.sample import sample

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"hidden": 64, "intermediate": 96, "vocab": 512}
TEXT = "One paragraph of a text, with ümlauts.\n\nAnother one.\n"
CHAT = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}

_SEES = """version = 1
[model]
source = "ORG/NAME"
name = "sees"
[formats]
gguf = ["q4_k_m", "f16"]
mmproj = "f16"
[formats.awq]
group_size = 64
[calibration]
samples = 16
"""


def make_targets(folder: Path) -> dict[str, Target]:
    """All targets, with their seeds in `folder`; parquet only where pyarrow is installed."""
    model = tiny_llama(folder / "model", variant="llama3", **SMALL)  # type: ignore[arg-type]
    spm = tiny_llama(folder / "spm", variant="llama2", **SMALL)  # type: ignore[arg-type]
    for path in spm.glob("tokenizer.json"):
        path.unlink()
    few = ("--samples", "8", "--seq-len", "32", "--raw", "--no-logits")
    made = quantkit_here("convert", model, "-t", "q8_0", "-t", "imatrix", *few, "-o", folder)
    assert made.code == 0, made.stderr
    outputs, matrix = folder / "model-GGUF", folder / "model-imatrix.gguf"
    gguf = outputs / "model-Q8_0.gguf"
    (folder / "Modelfile").write_text(
        'FROM smollm2\nTEMPLATE """<|x|>{{ .Prompt }}<|y|>"""\nPARAMETER stop "<|x|>"\nSYSTEM Hello\nMESSAGE user Hi\n'
    )
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    (folder / "report.json").write_text(json.dumps(sample()))
    (folder / "old.dat").write_bytes(_old_imatrix())
    recipe, again = folder / "recipes" / "smollm2.toml", folder / "recipes" / "again.toml"
    sees = folder / "recipes" / "sees.toml"
    sees.write_text(_SEES)
    dry = ("-t", "q4_0", "--dry-run", "-o", folder / "out")
    targets = {
        "config.json": Target(model / "config.json", command("plan", model, "--ram", "8G", "--vram", "0")),
        "config.json, converted": Target(model / "config.json", command("gguf", model, *dry)),
        "tokenizer.json": Target(model / "tokenizer.json", command("gguf", model, *dry)),
        "tokenizer_config.json": Target(model / "tokenizer_config.json", command("gguf", model, *dry)),
        "generation_config.json": Target(model / "generation_config.json", command("gguf", model, *dry)),
        "tokenizer.model": Target(spm / "tokenizer.model", command("gguf", spm, *dry)),
        "safetensors": Target(_weights(model), command("gguf", model, *dry), 2048),
        "gguf": Target(gguf, command("inspect", gguf), 30_000),
        "gguf, planned": Target(gguf, command("plan", gguf, "--ram", "8G", "--vram", "0"), 30_000),
        "imatrix": Target(matrix, command("gguf", model, "--imatrix", matrix, *dry), 4096),
        "old imatrix": Target(folder / "old.dat", command("gguf", model, "--imatrix", folder / "old.dat", *dry)),
        "quantkit.json": Target(outputs / "quantkit.json", command("inspect", outputs)),
        "quantkit.json, card": Target(
            outputs / "quantkit.json", command("card", outputs, "-o", folder / "card" / "README.md")
        ),
        "report.json": Target(folder / "report.json", lambda: _report(folder / "report.json")),
        "Modelfile": Target(folder / "Modelfile", command("ollama", "--check", folder / "Modelfile")),
        "recipe": Target(recipe, lambda: _recipe(recipe, again)),
        "recipe with a projector": Target(sees, lambda: _recipe(sees, again)),
        "journal of a conversion": Target(_journal(folder / "journal"), lambda: _open_journal(folder / "journal")),
        "journal of a bake": Target(_bake_journal(folder / "b.journal"), lambda: _open_bake(folder / "b.journal")),
    }
    texts = {
        "a.txt": TEXT.encode(),
        "a.json": json.dumps([{"text": TEXT}, CHAT]).encode(),
        "a.jsonl": b"".join(json.dumps(line).encode() + b"\n" for line in ({"text": TEXT}, CHAT)),
        "a.jsonl.gz": gzip.compress((json.dumps(CHAT) + "\n").encode() * 5, mtime=0),
    }
    for name, data in texts.items():
        (folder / name).write_bytes(data)
        targets[name] = Target(folder / name, _documents(folder / name))
    if importlib.util.find_spec("pyarrow") is not None:
        pyarrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"text": [TEXT, None, TEXT]}), folder / "a.parquet")
        targets["a.parquet"] = Target(folder / "a.parquet", _documents(folder / "a.parquet"))
    return targets | checkpoint_targets(folder, model)


def _weights(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


def _old_imatrix() -> bytes:
    """llama-imatrix's format before GGUF: (name, calls, values) of each tensor, the chunks, the text's name."""
    data = struct.pack("<i", 2)
    for name in ("blk.0.attn_q.weight", "blk.0.ffn_down.weight"):
        values = np.ones(64 if "attn" in name else 96, np.float32)
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 4, len(values)) + values.tobytes()
    return data + struct.pack("<ii", 4, 8) + b"text.txt"


def _report(path: Path) -> str:
    return str(read_report(load_report(path)))


def _recipe(path: Path, again: Path) -> str:
    """A recipe that is read says the same once it is written into one file."""
    recipe = read_recipe(path)
    if recipe.ollama_name is not None:
        ollama_recipe(recipe.opened)
    again.write_text(write_recipe(recipe.opened.table), "utf-8")
    assert read_recipe(again).opened.table == recipe.opened.table
    return recipe.name


def _journal(path: Path) -> Path:
    journal = Journal(path, "plan", ["out.gguf.partial"], force=False)
    journal.finished("blk.0", {"errors": {"q": 0.5}})
    journal.finished("blk.1")
    journal.start_finishing({"out.gguf": "00"})
    journal.close()
    return path


def _open_journal(path: Path) -> str:
    journal = Journal(path, "plan", [], force=False)
    journal.finished("blk.2")
    journal.close()
    return str(journal.records)


def _bake_journal(path: Path) -> Path:
    journal = BakeJournal(path)
    journal.start("q4_0", "a", [path])
    journal.finish("q4_0", "a", [path], {"seconds": 1.5, "peak_memory_bytes": 5})
    journal.close()
    return path


def _open_bake(path: Path) -> str:
    journal = BakeJournal(path)
    try:
        states = [journal.current("q4_0", "a"), journal.ours("q4_0", [path]), journal.complete("q4_0", "a")]
        return str([*states, journal.record("q4_0").get("seconds", 0.0)])
    finally:
        journal.close()


def _documents(path: Path) -> Callable[[], str]:
    def run() -> str:
        documents, _ = read_documents(path)
        return json.dumps(documents, ensure_ascii=False).encode("utf-8").decode()

    return run
