"""Names and shapes of the tensors that classes of transformers save for the tiny models. Runs in a peer's venv.

    <peer's python> -m tests.vision.layouts FOLDER NAME ...

FOLDER/NAME.json gets {tensor: shape}.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

from tests.vision.cases import Case, case_of


def main() -> None:
    for name in sys.argv[2:]:
        layout = _layout(case_of(name))
        (Path(sys.argv[1]) / f"{name}.json").write_text(json.dumps(layout))


def _layout(case: Case) -> dict[str, list[int]]:
    import torch
    import transformers
    from safetensors import safe_open

    if case.layout is not None:
        return {name: list(shape) for name, shape in case.layout.items()}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(case.config))
        config = transformers.AutoConfig.from_pretrained(folder)
        getattr(transformers, case.auto).from_config(config).to(torch.bfloat16).save_pretrained(folder)
        layout = {}
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            for name in file.keys():  # noqa: SIM118
                shape = list(file.get_slice(name).get_shape())
                for pattern, replacement in case.published:
                    name = re.sub(pattern, replacement, name)
                layout[name] = shape
        return layout


if __name__ == "__main__":
    main()
