"""Imported by Python at its start where this folder is on PYTHONPATH: kills the keeper amid its work.

When the file `armed` appears in $KILL_HOME, the keeper's file and socket operations are
counted from there, and before number $KILL_HOME/at the process kills itself, once.
"""

import os
import signal
import sys

HOME = os.environ["KILL_HOME"]
OPERATIONS = {
    "open",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.symlink",
    "shutil.rmtree",
    "socket.bind",
    "socket.connect",
    "socket.sendmsg",
}
state = {"count": 0, "busy": False}


def count(event: str, _: object) -> None:
    if event not in OPERATIONS or state["busy"] or not os.path.exists(f"{HOME}/armed"):
        return
    state["busy"] = True
    with open("/proc/self/comm", encoding="ascii") as comm:
        is_keeper = comm.read() == "botproxy-keeper\n"
    if is_keeper:
        state["count"] += 1
        with open(f"{HOME}/at", encoding="ascii") as at:
            if state["count"] == int(at.read()):
                os.rename(f"{HOME}/armed", f"{HOME}/killed before {event}")
                os.kill(os.getpid(), signal.SIGKILL)
    state["busy"] = False


sys.addaudithook(count)
