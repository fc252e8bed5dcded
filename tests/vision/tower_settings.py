"""Every setting of the towers of the tiny models, as transformers' config classes have them.

    python -m tests.vision.tower_settings

asks the newest peer and stores the answer in golden/tower_settings.json.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.vision.cases import NAMES, case_of

GOLDEN = Path(__file__).with_name("golden") / "tower_settings.json"
SECTIONS = ("vision_config", "audio_config")


def settings_of(name: str) -> dict[str, Any]:
    """By section, the tower's config of a case with every setting of its class; {} if transformers has no class."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(case_of(name).config))
        try:
            config = transformers.AutoConfig.from_pretrained(folder).to_dict()
        except (ValueError, OSError):  # remote code
            return {}
    return {section: config[section] for section in SECTIONS if config.get(section)}


def main() -> None:
    if sys.argv[1:]:
        print(json.dumps({name: settings_of(name) for name in sys.argv[1:]}))
        return
    from tests.helpers.peer import REPOSITORY, newest_converter

    peer = newest_converter()
    environment = {**peer.environment(), "PYTHONPATH": str(REPOSITORY)}
    command = [str(peer.python), "-m", "tests.vision.tower_settings", *NAMES]
    answer = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    records = json.loads(answer.stdout)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(record, sort_keys=True)}" for name, record in records.items())
    GOLDEN.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
