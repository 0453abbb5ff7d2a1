"""Several processes that train one model together: the ranks that torchrun starts.

    torchrun --standalone --nproc-per-node 2 main.py

Every rank runs the same program, but only the first, rank 0, prints and writes files.  With one
process every function here does nothing, or returns what it was given.  Numbers and objects travel
between CPUs (gloo), gradients between the models' devices (nccl on CUDA).  Where a rank dies,
torchrun ends the others.  Knows nothing of experiments.
"""

import contextlib
import functools
import io
import os
import sys
import time

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from machine.command import DONE, FAILED, GOES_ON, INTERRUPTED, UserError
from machine.device import is_out_of_memory, resolve_device

# how gloo, and in the last words NCCL, say that another rank cannot be reached
LOST_SIGNS = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
ENDED_BY_TORCHRUN = 60  # seconds at most until torchrun ends the ranks that are left
FIRST_HAS_ITS_SAY = 10  # seconds that the first rank has to print its error
MEMORY_REMEDY = "lower --batch-size, --seq-len, --d-model or --layers, or add --checkpoint-blocks "
MEMORY_REMEDY += "--loss-chunk 8192"


def rank():
    """Which of the processes this one is, from 0."""
    return dist.get_rank() if size() > 1 else 0


def size():
    """How many processes train together."""
    connected = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if connected else 1


def is_first():
    """Is this the process that prints and writes?"""
    return rank() == 0


# the program, from its first line to its exit code
class LastLine(io.TextIOBase):
    """The stderr of ranks that are not heard: keeps the last line, in case one fails alone."""

    text = ""

    def write(self, text):
        self.text = (text.strip().splitlines() or [self.text])[-1]
        return len(text)


def run(command):
    """The exit code of ``command()``, which every rank runs; the first one alone is heard."""
    if not dist.is_torchelastic_launched():
        return command()
    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(dist.get_node_local_rank() % torch.cuda.device_count())
    # waits 30 minutes: the first rank may prepare data meanwhile
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
    unheard = LastLine()
    if rank():
        sys.stdout, sys.stderr = open(os.devnull, "w"), unheard  # noqa: SIM115 (to the end)
    try:
        code = command()
    except SystemExit as stop:  # of argparse
        code = stop.code or 0
    except RuntimeError as error:
        if not any(sign in str(error) for sign in LOST_SIGNS):
            raise
        ended = "another rank has ended, which torchrun's report names as the root cause"
        reason = str(error).strip().partition("\n")[0]
        print(f"error: rank {rank()}: {ended} ({reason})", file=sys.__stderr__, flush=True)
        time.sleep(ENDED_BY_TORCHRUN)  # or its report could name this rank as the cause
        os._exit(FAILED)
    finally:
        sys.stderr = sys.__stderr__  # an exception that goes through is shown
    if rank() and DONE < code < INTERRUPTED:
        time.sleep(FIRST_HAS_ITS_SAY)  # where every rank fails alike, the first ends all meanwhile
        if unheard.text:
            print(f"rank {rank()}: {unheard.text}", file=sys.__stderr__, flush=True)
    print(end="", flush=True)
    os._exit(code)  # waits neither for other ranks nor for anything on the device


def ran_out_of_memory(error, kept=f"; {GOES_ON}"):
    """Does an exception say that memory ran out?  With several ranks it then ends the process.

    The other ranks would wait for ever.  kept: what is left then, in words.
    """
    if not is_out_of_memory(error):
        return False
    if size() > 1:
        print(f"error: rank {rank()}: out of memory: {MEMORY_REMEDY}{kept}", file=sys.__stderr__)
        os._exit(FAILED)
    return True


# agreeing
def gather(value):
    """Every rank's value, as a list on every rank."""
    if size() == 1:
        return [value]
    values = [None] * size()
    dist.all_gather_object(values, value)
    return values


def on_every(function, *arguments):
    """``function(*arguments)``; where it raises on one rank, all raise.

    Machines need not share a disk: what one has may be missing on another.
    """
    value, error = None, None
    try:
        value = function(*arguments)
    except Exception as raised:
        error = raised
    errors = gather(None if error is None else str(error) or repr(error))
    if error is not None:
        raise error
    for place, text in enumerate(errors):
        if text is not None:
            raise UserError(f"rank {place}: {text}")
    return value


def from_first(function, *arguments):
    """``function(*arguments)`` of the first rank alone; every rank gets its result, or raises."""
    value = on_every(lambda: function(*arguments) if is_first() else None)
    return gather(value)[0]


def _reduce(numbers, operation):
    if size() == 1:
        return list(numbers)
    numbers = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(numbers, operation)
    return numbers.tolist()


def largest(*numbers):
    """For each of the numbers, the largest over the ranks, a list."""
    return _reduce(numbers, dist.ReduceOp.MAX)


def total(*numbers):
    """For each of the numbers, the sum over the ranks, a list."""
    return _reduce(numbers, dist.ReduceOp.SUM)


def mean(numbers):
    """For each of the numbers in a list, the mean over the ranks, a list."""
    return [number / size() for number in total(*numbers)]


# models and their devices
def chosen_device(name):
    """The torch.device that ``--device name`` means for all ranks; ValueError."""
    device = resolve_device(name)
    if ":" in name and size() > 1:
        raise ValueError(f"--device {name} names one GPU for {size()} ranks: name cuda")
    return device


def local_device(device):
    """This rank's own device of the kind: the GPU with the rank's local number, or the CPU."""
    if size() == 1 or device.type != "cuda":
        return device
    index, count = dist.get_node_local_rank(), torch.cuda.device_count()
    if index >= count:
        found = f"its machine has {count}, lower --nproc-per-node"
        raise UserError(f"rank {rank()} has no GPU: {found}")
    return torch.device("cuda", index)


def backend(device):
    """What carries the gradients of models on ``device``; "none" for one process."""
    if size() == 1:
        return "none"
    return "nccl" if device.type == "cuda" else "gloo"


@functools.cache
def mesh(shards, device_type):
    """The ranks as a DeviceMesh: neighbours share sequences, others rows."""
    shape = size() // shards, shards
    return dist.init_device_mesh(device_type, shape, mesh_dim_names=("data", "shard"))


def share_of_rows(shards):
    """The slice of rows that this rank takes, where ``shards`` neighbours take the same ones."""
    return slice(rank() // shards, None, size() // shards)


def data_parallel(module):
    """The module, its gradients averaged over the ranks (DistributedDataParallel)."""
    if size() == 1:
        return module
    return DistributedDataParallel(module, gradient_as_bucket_view=True)


def local_gradients(module):
    """A context in which gradients stay on this rank, to be averaged with later ones."""
    if isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return contextlib.nullcontext()
