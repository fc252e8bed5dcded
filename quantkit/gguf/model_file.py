"""The model of a folder of GGUF files, for commands that take a single file."""

from pathlib import Path

from quantkit.checkpoint.not_checkpoint import output_folder
from quantkit.errors import CheckpointError
from quantkit.gguf.projector_file import is_projector
from quantkit.gguf.reader import read_header, shard_paths


def model_file(path: Path) -> Path:
    """`path` itself, or the only model of the folder `path`: its first shard if it is split; projectors do not count.

    Raises:
        CheckpointError: the folder holds no model or several, or a file of it is damaged.
    """
    if not path.is_dir():
        return path
    files = model_files(path)
    if len(files) == 1:
        return files[0]
    if files:
        raise CheckpointError(f"{path} holds {len(files)} GGUF models; pass one of them, such as {files[0]}")
    if (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} is a checkpoint, not a GGUF; convert it with quantkit gguf {path} -t q4_k_m first"
        )
    inner = output_folder(path)
    raise CheckpointError(f"{path} holds no GGUF model; pass {inner or 'a GGUF file, or a folder that holds one'}")


def model_files(folder: Path) -> list[Path]:
    """The GGUF models directly in `folder`, each by its first shard, sorted by name; without projectors.

    Raises CheckpointError if a file is damaged or a shard is missing.
    """
    files = sorted(file for file in folder.glob("*.gguf") if file == shard_paths(file)[0])
    return [file for file in files if not is_projector(read_header(file))]
