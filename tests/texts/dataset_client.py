"""Reads the files of one dataset and tells what came of it as JSON; as a script, in a process of its own."""

import json
import sys
from typing import Any

from quantkit.errors import QuantkitError
from quantkit.texts.dataset import dataset_files
from quantkit.texts.dataset_name import parse_dataset
from quantkit.texts.documents import read_documents


def read_dataset(source: str, *, offline: bool) -> dict[str, Any]:
    """The names of the files and their documents, or the class and the message of the error."""
    dataset = parse_dataset(source)
    assert dataset is not None
    try:
        files = [(path.name, read_documents(path)[0]) for path in dataset_files(dataset, offline=offline)]
    except QuantkitError as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {"files": [name for name, _ in files], "documents": [text for _, texts in files for text in texts]}


if __name__ == "__main__":
    print(json.dumps(read_dataset(sys.argv[1], offline=sys.argv[2] == "offline")))
