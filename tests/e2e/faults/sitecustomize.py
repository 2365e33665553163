"""Imported by Python at its start where this folder is on PYTHONPATH: faults to order, in the real program.

Once the file $FAULT_HOME/armed exists, the next call of the function $FAULT ("module:Class.method")
raises, in whichever process it comes, and the file is gone. SIGALRM makes a process hang in its event
loop.
"""

import importlib
import os
import signal
import time
from collections.abc import Callable
from typing import Any

ARMED = f"{os.environ['FAULT_HOME']}/armed"


def breaking(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            os.rename(ARMED, f"{ARMED}.done")
        except FileNotFoundError:
            return function(*args, **kwargs)
        raise RuntimeError("a fault to order")

    return call


def hang_to_order(*_: object) -> None:
    time.sleep(1000)


module, _, path = os.environ.get("FAULT", "").partition(":")
if module:
    owner, _, name = path.partition(".")
    holder = getattr(importlib.import_module(module), owner)
    setattr(holder, name, breaking(getattr(holder, name)))
signal.signal(signal.SIGALRM, hang_to_order)
