"""What ``simmim doctor`` says of facts, and one look at this machine."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from simmim.api import doctor
from simmim.cli.main import main
from simmim.verify.installation import GIB, Disk, Facts, Finding, Reading, Torch, findings

TORCH = Torch(version="2.14.1+cu130", cuda="13.0", bf16=True, bf16_gain=1.6)
H200 = replace(TORCH, gpus=[("NVIDIA H200", 139 * GIB)])
CARD = {"nvidia": 1, "driver": "580.82"}
INSTALLED = {"simmim": "0.1.0", "torch": "2.14.1+cu130", "torchvision": "0.29.1", "numpy": "2.4.6"}
GOOD = Facts(
    cpu="EPYC",
    cores=4,
    torch=TORCH,
    installed=INSTALLED,
    requires={
        "simmim": ["torch>=2.11", "numpy>=1.26", 'transformers>=4.50; extra == "hf"'],
        "torchvision": ["torch (>=2.14.0)"],
    },
    shm=64 << 20,
    disk=Disk(place="runs", free=60 * GIB, write=4e8, fsync=0.005),
    reading=Reading(source="photos", images=3000, images_per_s=2000.0, bytes_per_s=1e8, tried=99),
)
ERROR = "RuntimeError: operator torchvision::nms does not exist"


def of(facts: Facts, name: str) -> Finding:
    (finding,) = [each for each in findings(facts) if each.name == name]
    return finding


def test_a_good_machine_has_nothing_to_put_right():
    found = findings(GOOD)
    assert {each.verdict for each in found} == {"ok"}
    names = [each.name for each in found]
    assert len(names) == len(set(names)) == 13
    assert of(GOOD, "extras").way == "pip install 'simmim[hf]'"
    assert of(GOOD, "GPU").said == (
        "none of NVIDIA found; runs go on the CPU (torch is built for CUDA 13.0)"
    )


@pytest.mark.parametrize(
    ("changes", "name", "verdict", "said", "way"),
    [
        ({"load": 9.0}, "CPU", "warn", "9.0 processes want to run", "top"),
        ({"memory_free": GIB}, "memory", "warn", "1.1 GB free", "ps aux"),
        ({"torch": H200, **CARD}, "GPU", "ok", "NVIDIA H200 (139 GiB), driver 580.82", ""),
        (
            {"torch": replace(H200, gpus=[("A", GIB)] * 2), **CARD},
            *("GPU", "ok", "A (1 GiB), A (1 GiB)", "torchrun --nproc-per-node=2"),
        ),
        (
            {"torch": replace(TORCH, cuda=None), **CARD},
            *("GPU", "bad", "torch 2.14.1+cu130 is built for CPUs", "torch torchvision --index"),
        ),
        ({"nvidia": 1}, "GPU", "bad", "there is no driver", "ubuntu-drivers install"),
        ({**CARD, "hidden": True}, "GPU", "warn", "leaves none", "unset CUDA_VISIBLE_DEVICES"),
        (
            {**CARD, "torch": replace(TORCH, cuda_error="The NVIDIA driver is too old")},
            *("GPU", "bad", "the driver is 580.82 (The NVIDIA driver is too old)", "install"),
        ),
        (
            {"installed": {**INSTALLED, "torch": "2.13.0"}},
            *("versions", "bad", "torchvision needs torch (>=2.14.0), and 2.13.0 is installed"),
            "pip install 'torch>=2.14.0'",
        ),
        (
            {"requires": {"simmim": ["pyarrow>=17"]}},
            *("versions", "bad", "simmim needs pyarrow, which is missing", "'pyarrow>=17'"),
        ),
        ({"torch": "ImportError: libcudart"}, "torch", "bad", "libcudart", "install --upgrade"),
        (
            {"torchvision": ERROR},
            *("torchvision", "bad", f"0.29.1 does not fit torch 2.14.1+cu130: {ERROR}"),
            "pip install --upgrade --force-reinstall torch torchvision",
        ),
        (
            {"torch": replace(TORCH, numpy_error="Numpy is not available")},
            *("numpy", "bad", "with numpy 2.4.6: Numpy is not available", "--force-reinstall"),
        ),
        (
            {"torch": replace(TORCH, version="2.2.1")},
            *("numpy", "bad", "with numpy 2.4.6: it was built for numpy 1", "'numpy<2'"),
        ),
        ({"jpeg": "ImportError: libturbojpeg"}, "JPEG", "bad", "libturbojpeg", "simplejpeg"),
        ({"quota": 1.5}, "threads", "warn", "1.5 of the 4 cores", "--threads 1 --workers 1"),
        ({"quota": 4.0}, "threads", "ok", "", ""),
        ({"threads": {"OMP_NUM_THREADS": "4"}}, "threads", "ok", "", ""),
        (
            {"threads": {"OMP_NUM_THREADS": "64", "MKL_NUM_THREADS": "8"}},
            *("threads", "warn", "OMP_NUM_THREADS=64 and MKL", "unset OMP_NUM_THREADS MKL_NUM"),
        ),
        ({"threads": {"OMP_WAIT_POLICY": "ACTIVE"}}, "threads", "warn", "idle threads", "unset"),
        (
            {"torch": replace(TORCH, bf16_gain=0.4)},
            *("bfloat16", "warn", "0.4 times as fast", "--precision fp32"),
        ),
        (
            {"torch": replace(TORCH, bf16=False, bf16_gain=0.4)},
            *("bfloat16", "ok", "auto does not take it", ""),
        ),
        ({"shm": None}, "/dev/shm", "warn", "there is no /dev/shm", "mount"),
        ({"shm": 4096}, "/dev/shm", "warn", "too little", "--shm-size"),
        (
            {"torch": replace(H200, gpus=[("A", GIB)] * 2)},
            *("/dev/shm", "warn", "67 MB, and several GPUs", "--shm-size"),
        ),
        (
            {"disk": Disk(place="/full", free=10**8)},
            *("runs' disk", "bad", "0.1 GB free, too little", "--out"),
        ),
        (
            {"disk": Disk(place="/ro", error="Read-only file system")},
            *("runs' disk", "bad", "written to /ro (Read-only file system)", "--out"),
        ),
        (
            {"disk": Disk(place="/d", free=4 * 10**9, write=4e8, fsync=0.01)},
            *("runs' disk", "warn", "4.0 GB free", "--out"),
        ),
        (
            {"disk": Disk(place="/slow", free=10**11, write=4e8, fsync=0.7)},
            *("runs' disk", "warn", "700.0 ms to be on the disk; each checkpoint takes long", ""),
        ),
        (
            {"reading": Reading(source="nfs", images=9, images_per_s=20.0, tried=60)},
            *("images", "warn", "20 images/s", "simmim shard nfs --out SHARDS"),
        ),
        (
            {"reading": Reading(source="d", images=9, images_per_s=900.0, tried=60, failed=2)},
            *("images", "warn", "2 of 60 could not be read", "simmim scan d"),
        ),
        (
            {"reading": Reading(source="d", error="d holds no images")},
            *("images", "bad", "holds no images", "simmim scan"),
        ),
    ],
)
def test_each_fault_is_named_with_the_way_out(
    changes: dict, name: str, verdict: str, said: str, way: str
):
    found = of(replace(GOOD, **changes), name)
    assert found.verdict == verdict
    assert said in found.said
    assert way in found.way


def test_a_torch_that_cannot_be_imported_hides_nothing_else():
    names = {each.name for each in findings(replace(GOOD, torch="ImportError"))}
    assert names == {
        *("CPU", "memory", "versions", "torch", "JPEG", "extras", "threads"),
        *("/dev/shm", "runs' disk", "images"),
    }


def test_this_machine_is_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(8):
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / f"{number}.png")
    code = main(["doctor", "photos", "--json"])
    said, err = capsys.readouterr()
    facts = json.loads(said)
    verdicts = {each["name"]: each["verdict"] for each in facts["findings"]}
    assert code == ("bad" in verdicts.values())
    assert ("findings are bad" in err) == code
    assert verdicts["torchvision"] == verdicts["numpy"] == verdicts["JPEG"] == "ok"
    assert facts["facts"]["cores"] == len(os.sched_getaffinity(0))
    assert facts["facts"]["reading"]["tried"] == facts["facts"]["reading"]["images"] == 8
    assert facts["facts"]["torch"]["bf16_gain"] > 0
    assert facts["facts"]["disk"]["write"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]  # what was written is gone


def test_a_folder_of_runs_or_an_empty_one_is_where_runs_are_written(tmp_path: Path):
    (tmp_path / "one").mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        (tmp_path / "one" / name).touch()
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path, tmp_path / "empty"):
        place, source = doctor._place_and_source(str(folder))
        assert (place, source) == (folder, None)
    assert doctor._place_and_source("https://a.b/c.tar")[1] == "https://a.b/c.tar"


def test_images_that_are_not_there_are_a_mistake(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "nowhere"]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_what_a_trial_dies_of_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "torch.py").touch()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    broken = tmp_path / "torchvision.py"
    broken.write_text("import os; os.abort()")
    said = doctor.trials(["torchvision", "jpeg"])
    assert said["torchvision"].startswith("the process ended with status -6")
    assert said["jpeg"] is None  # the next one is tried all the same
    broken.write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    assert doctor.trials(["torchvision"]) == {"torchvision": ERROR}
