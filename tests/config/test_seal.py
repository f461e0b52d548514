import json
from pathlib import Path

import pytest
import yaml

from simmim.config.seal import read_sealed, seal_holds, seal_json, seal_yaml
from simmim.errors import CheckpointError


@pytest.mark.parametrize("ending", [".json", ".yaml"])
def test_any_change_of_a_sealed_file_is_noticed(ending: str, tmp_path: Path):
    document = {"step": 20, "files": ["a", "é\udcff"], "rate": 0.001}
    text = seal_json(document) if ending == ".json" else seal_yaml(yaml.safe_dump(document))
    file = tmp_path / f"x{ending}"
    whole = text.encode("utf-8", "backslashreplace")
    file.write_bytes(whole)
    text, sha256 = read_sealed(file, "")
    assert sha256 in text
    read = json.loads(text) if ending == ".json" else yaml.safe_load(text)
    assert {key: read[key] for key in document} == document
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CheckpointError, match=rf"x\{ending} is damaged, or was changed"):
            read_sealed(file, "")
        file.write_bytes(whole[:at])
        with pytest.raises(CheckpointError, match="Do this"):
            read_sealed(file, "Do this.")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_sealed(tmp_path / "none.json", "")


def test_a_file_without_a_hash_may_be_somebody_elses(tmp_path: Path):
    file = tmp_path / "x.json"
    file.write_text('{"a": 1}')
    assert seal_holds(file.read_bytes(), ".json") is None
    assert read_sealed(file, "", foreign=True).text == '{"a": 1}'
    with pytest.raises(CheckpointError, match="does not end with the sha256"):
        read_sealed(file, "")
    file.write_text(seal_json({"a": 1}).replace("1", "2", 1))
    with pytest.raises(CheckpointError, match="changed by hand"):
        read_sealed(file, "", foreign=True)
