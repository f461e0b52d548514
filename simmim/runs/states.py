"""What the small file of a checkpoint says of it; without torch, and without its hashes."""

import json
import re
from pathlib import Path
from typing import Any

from simmim.config.run import FORMAT
from simmim.config.seal import read_sealed
from simmim.errors import CheckpointError

STATE = "state.json"


def name_of(step: int) -> str:
    """The folder of a checkpoint."""
    return f"step-{step:08d}"


def step_folders(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder of them, the newest first, whole or not."""
    found = (each for each in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", each.name))
    return sorted(found, reverse=True)


def read_state(folder: Path) -> dict[str, Any]:
    """The state.json of a checkpoint whose files are as long as it says.

    Raises:
        CheckpointError: Missing, cut short, damaged, or of another format.
    """
    state = json.loads(read_sealed(folder / STATE, "An older checkpoint may be whole.").text)
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"{folder} has format {state['format']}; this simmim reads format {FORMAT}. Use the "
            "version that wrote it."
        )
    if name_of(state["step"]) != folder.name:
        raise CheckpointError(f"{folder} is the checkpoint of step {state['step']}, renamed.")
    for name, expected in state["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from error
        if size != expected["bytes"]:
            raise CheckpointError(
                f"{path} is cut short or too long: {size:,} bytes instead of {expected['bytes']:,}."
            )
    return state
