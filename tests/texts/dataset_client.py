"""Reads the files of one dataset in a process of its own and prints what came of it as JSON (see hub_client.py)."""

import json
import sys

from quantkit.errors import QuantkitError
from quantkit.texts.dataset import dataset_files, parse_dataset
from quantkit.texts.documents import read_documents


def main() -> None:
    source, offline = sys.argv[1], sys.argv[2] == "offline"
    dataset = parse_dataset(source)
    assert dataset is not None
    try:
        found = [(path.name, read_documents(path)[0]) for path in dataset_files(dataset, offline=offline)]
        print(json.dumps({"files": [name for name, _ in found], "documents": [d for _, each in found for d in each]}))
    except QuantkitError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))


if __name__ == "__main__":
    main()
