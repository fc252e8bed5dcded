"""Run a notebook as Jupyter does: `python run_notebook.py NOTEBOOK FOLDER OUT NAME=VALUE...`.

It runs in the environment of test_notebook.py, in FOLDER. Each NAME=VALUE replaces the value of a line `NAME = "..."`.
OUT gets the notebook with the outputs of its cells.
"""

import re
import sys

import nbformat
from nbclient import NotebookClient

source, folder, out, *settings = sys.argv[1:]
notebook = nbformat.read(source, as_version=4)
nbformat.validate(notebook)
for setting in settings:
    name, _, value = setting.partition("=")
    for cell in notebook.cells:
        line = re.compile(rf'^{name} = ".*?"', re.MULTILINE)
        cell.source = line.sub(lambda _, name=name, value=value: f"{name} = {value!r}", cell.source)
NotebookClient(notebook, timeout=400, resources={"metadata": {"path": folder}}).execute()
nbformat.write(notebook, out)
