"""What a signal raises where nothing can be raised."""

import subprocess
import sys
from pathlib import Path

LOST = """
import os, signal, time, weakref
from simmim.errors import Stopped
from simmim.runs.stop import listen

class Thing:
    pass

def lost(_):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)

def failed(_):
    raise ValueError("told")

with listen():
    thing = Thing()
    watch = weakref.ref(thing, failed)
    del thing
    thing = Thing()
    watch = weakref.ref(thing, lost)
    try:
        del thing
        time.sleep(5)
    except Stopped as stopped:
        print("stopped by", stopped.number)
"""


def test_a_signal_that_is_lost_in_a_callback_comes_again_and_is_not_told_twice():
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, check=True)
    assert done.stdout == "stopped by 15\n"
    assert "ValueError: told" in done.stderr
    assert "Stopped" not in done.stderr


def test_a_signal_in_an_import_waits_for_its_end(tmp_path: Path):
    module = (
        "import os, signal\n"
        "class Field:\n"
        "    def __set_name__(self, owner, name):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "class Owner:\n"
        "    field = Field()\n"
        "print('imported')\n"
    )
    (tmp_path / "slow.py").write_text(module)
    told = (
        "import time\n"
        "from simmim.errors import Stopped\n"
        "from simmim.runs.stop import listen\n"
        "try:\n"
        "    with listen():\n"
        "        import slow\n"
        "        time.sleep(5)\n"
        "except Stopped as stopped:\n"
        "    print('stopped by', stopped.number)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == "imported\nstopped by 15\n"
