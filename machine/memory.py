"""Memory on a CPU: the growth of a fresh process that does some work.

A process's high-water mark never falls, so one measurement's would leak into the next one's figure:
each is made in a process of its own.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

from machine.describe import FOLDER


def growth_in_child(module, function, job):
    """Growth of resident memory in MB while a fresh process does some work.

    ``module.function(**job)`` prepares the work and returns it as a function without arguments,
    which alone is measured; ``job`` must survive JSON.  NaN where the system does not tell;
    RuntimeError where the child failed (see ``is_out_of_memory``).
    """
    code = f"import machine.memory, {module}; machine.memory.measure_growth({module}.{function})"
    child = subprocess.run(
        [sys.executable, "-c", code],
        cwd=FOLDER,  # where the child finds these modules
        input=json.dumps(job),
        capture_output=True,
        text=True,
        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the child
    )
    if child.returncode:
        last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        raise RuntimeError(f"the process that measures memory failed: {last}")
    return json.loads(child.stdout.splitlines()[-1])


def measure_growth(function):
    """The child's side of ``growth_in_child``: the job on stdin, the growth on stdout."""
    work = function(**json.load(sys.stdin))
    before = _resident_mb("VmRSS")
    work()
    print(json.dumps(_resident_mb("VmHWM") - before))


def _resident_mb(field):
    """Resident memory of this process in MB, VmRSS now or VmHWM at its peak; NaN where unknown.

    macOS tells the peak alone, which before any work is what is held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))
    if sys.platform != "darwin":
        return math.nan
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
