"""Several processes that train one model together: the ranks that torchrun starts.

    torchrun --standalone --nproc-per-node 2 main.py

Rank 0 leads: it alone reads options, plans, prints and writes, and calls the others to what every
rank takes part in (``together``).  With one process every function here does nothing, or returns
what it was given.  Numbers and objects travel between CPUs (gloo), gradients between the models'
devices (nccl on CUDA).  Knows nothing of experiments.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
import traceback
from datetime import timedelta

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from machine.device import is_out_of_memory
from machine.signals import Terminated, terminable

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
GOES_ON = "finished trainings are kept, and the same command, without --restart, goes on from there"
STARTUP = timedelta(minutes=5)  # between the first and the last rank's start
# Rank 0 may prepare data for long while the others wait.  Whether a rank is alive is told by its
# heartbeat and by its connections, so no call needs a shorter limit.
PATIENCE = timedelta(days=1)
BEAT = 5  # seconds from one sign of life to the next
SILENCE = 40  # seconds without one after which a rank counts as lost
GRACE = 10  # seconds for ending in good order after a signal; torchrun kills after 30


class Lost(Exception):
    """The ranks cannot go on together; the message says why."""


# --- the ranks ---------------------------------------------------------------------------------
class _World:
    """This process among the ranks; one process is a world of its own."""

    rank, size, local_rank = 0, 1, 0
    store = watch = None
    apart = False  # is rank 0 inside a call of ``together``, where the others cannot be called?


_world = _World()


def rank():
    """Which of the processes this one is, from 0."""
    return _world.rank


def size():
    """How many processes train together."""
    return _world.size


def is_launched():
    """Did torchrun start this process as one of several?"""
    return all(name in os.environ for name in TORCHRUN) and int(os.environ["WORLD_SIZE"]) > 1


def local_device(device):
    """This rank's device of a kind: the GPU with its number on this machine, or the CPU."""
    if _world.size == 1 or device.type != "cuda":
        return device
    if _world.local_rank >= torch.cuda.device_count():
        raise Lost(
            f"rank {_world.rank} has no GPU: its machine has {torch.cuda.device_count()}, lower "
            "--nproc-per-node"
        )
    return torch.device("cuda", _world.local_rank)


def backend(device):
    """What carries the gradients of models on ``device``; "none" for one process."""
    if _world.size == 1:
        return "none"
    return "nccl" if device.type == "cuda" else "gloo"


def _start():
    rank, size, _world.local_rank, host, port = (os.environ[name] for name in TORCHRUN)
    _world.rank, _world.size, _world.local_rank = int(rank), int(size), int(_world.local_rank)
    # torchrun keeps a store in a process of its own; other launchers leave it to rank 0
    here = _world.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    place = host, int(port), _world.size
    prefix = f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    store = dist.TCPStore(*place, is_master=here, timeout=STARTUP, wait_for_workers=False)
    _world.store = dist.PrefixStore(prefix, store)
    # a client of its own: a call of the main thread may wait
    own = dist.TCPStore(*place, is_master=False, timeout=STARTUP, wait_for_workers=False)
    _world.watch = _Watch(dist.PrefixStore(prefix, own))
    _world.watch.beat()
    try:
        _world.store.wait([f"beat of {other}" for other in range(_world.size)], STARTUP)
    except RuntimeError:
        raise Lost(f"not all of {_world.size} ranks started within {STARTUP}") from None
    _world.watch.start()
    if torch.cuda.is_available():
        torch.cuda.set_device(_world.local_rank % torch.cuda.device_count())
    backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backends,
        store=dist.PrefixStore("group", _world.store),
        rank=_world.rank,
        world_size=_world.size,
        timeout=PATIENCE,
    )


class _Watch(threading.Thread):
    """Tells when a rank is lost, and ends this process where its main thread cannot.

    The main thread may be inside a call that waits for other ranks, where no exception and no
    signal reaches it.  Rank 0 looks after all others, they look after rank 0.
    """

    def __init__(self, store):
        super().__init__(daemon=True)
        self.store, self.beats = store, 0
        self.others = range(1, _world.size) if _world.rank == 0 else [0]
        # the system writes the number of every signal there at once, whatever Python is doing
        self.incoming, self.outgoing = os.pipe()
        os.set_blocking(self.outgoing, False)
        signal.set_wakeup_fd(self.outgoing, warn_on_full_buffer=False)

    def beat(self):
        self.beats += 1
        self.store.set(f"beat of {_world.rank}", str(self.beats))

    def run(self):
        heard = dict.fromkeys(self.others, (None, time.monotonic()))
        while True:
            # a machine that lost its power closes no connection: then these calls never return
            timer = threading.Timer(SILENCE, self.end_alone)
            timer.daemon = True
            timer.start()
            try:
                self.beat()
                last = {other: self.store.get(f"beat of {other}") for other in self.others}
            except RuntimeError:
                self.end("the process that started the ranks has ended")
            timer.cancel()
            now = time.monotonic()
            for other, beat in last.items():
                if beat != heard[other][0]:
                    heard[other] = beat, now
                elif now - heard[other][1] > SILENCE:
                    self.end(f"rank {other} has not been heard of for {SILENCE} seconds")
            if select.select([self.incoming], [], [], BEAT)[0]:
                signum = os.read(self.incoming, 1)[0]
                time.sleep(GRACE)  # a main thread that is free ends the process before that
                self.end("this experiment was told to stop", 128 + signum)

    def end(self, reason, code=1):
        say_once(reason, knows=True, store=self.store)
        leave(code)

    def end_alone(self):
        print(
            f"error: the process that started the ranks has not answered for {SILENCE} seconds; "
            f"{GOES_ON}",
            file=sys.stderr,
            flush=True,
        )
        leave(1)


def leave(code):
    """End this process now: neither waiting for other ranks nor for anything on the device."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def first_to_speak(store=None):
    """May this rank say why all end?  The first that asks may, and one process always."""
    store = store or _world.store
    try:
        return _world.rank == 0 if store is None else store.add("said", 1) == 1
    except RuntimeError:  # no store any more
        return _world.rank == 0


def say_once(reason, knows, store=None):
    """One line on why the ranks end, by the first of them alone.

    knows: this rank knows the reason; otherwise rank 0 speaks, and the others only where it is
    silent, for it may be the lost one.  store: another client, where the main thread may be waiting
    with its own.
    """
    if not knows and _world.rank and _world.store is not None:
        with contextlib.suppress(RuntimeError):
            _world.store.wait(["said"], timedelta(seconds=3))
    if first_to_speak(store):
        print(f"error: {reason}; {GOES_ON}", file=sys.stderr, flush=True)


def is_lost(error):
    """Does an exception say that the ranks have lost one another?"""
    # gloo's are RuntimeErrors whose text begins with the place in its source
    return isinstance(error, Lost | dist.DistError) or "gloo" in str(error)


# --- leading and following ---------------------------------------------------------------------
def lead_or_follow(lead):
    """The exit code of ``lead()``, which rank 0 alone runs; the others follow its calls.

    Ranks leave this function by ending, all with the same code: torchrun stops every rank as soon
    as one fails, and what it would interrupt must be over by then.
    """
    if not is_launched():
        return lead()
    with terminable():
        try:
            _start()
            code = lead() if _world.rank == 0 else _follow()
            _ignore_signals()
            if code < 128 and not _world.apart:
                _end_together(code)
        except SystemExit as end:  # of argparse
            _ignore_signals()
            code = end.code or 0
            _end_together(code)
        except KeyboardInterrupt as stop:
            _ignore_signals()
            code = 143 if isinstance(stop, Terminated) else 130
            say_once("another rank has ended, or torchrun was told to stop", knows=False)
        except BaseException as error:
            _ignore_signals()
            code = 1
            if is_lost(error):
                reason = str(error) if isinstance(error, Lost) else "another rank has ended"
                say_once(reason, knows=isinstance(error, Lost))
            else:
                traceback.print_exc()
        leave(code)


def _ignore_signals():
    """From now on nothing interrupts this rank's end."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def _end_together(code):
    """Rank 0 tells the others, which are waiting for its next call, to end with ``code``."""
    if _world.rank == 0:
        _broadcast(code)
    with contextlib.suppress(RuntimeError):  # who is gone already has got it
        barrier()


def _follow():
    while True:
        call = _broadcast()
        if isinstance(call, int):
            return call
        function, arguments = call
        function(*arguments)


def together(function, *arguments, **own):
    """``function(*arguments)`` on every rank; returns rank 0's result.

    To be called by rank 0.  own: keyword arguments that rank 0 alone gets.
    """
    if _world.size == 1:
        return function(*arguments, **own)
    _broadcast((function, arguments))
    _world.apart = True
    result = function(*arguments, **own)
    _world.apart = False
    return result


def _broadcast(value=None):
    """Rank 0's value."""
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


# --- inside a call -----------------------------------------------------------------------------
def gather(value):
    """Every rank's value, as a list on every rank."""
    if _world.size == 1:
        return [value]
    values = [None] * _world.size
    dist.all_gather_object(values, value)
    return values


def _reduce(numbers, operation):
    if _world.size == 1:
        return list(numbers)
    numbers = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(numbers, operation)
    return numbers.tolist()


def largest(*numbers):
    """The largest of every rank's, for each of the numbers."""
    return _reduce(numbers, dist.ReduceOp.MAX)


def total(*numbers):
    """The sum over the ranks, for each of the numbers."""
    return _reduce(numbers, dist.ReduceOp.SUM)


def mean(numbers):
    """The mean over the ranks, for each of the numbers."""
    if _world.size == 1:
        return list(numbers)
    return [number / _world.size for number in total(*numbers)]


def barrier():
    """Returns when every rank is here."""
    if _world.size > 1:
        total(0.0)


def data_parallel(module):
    """The module, its gradients averaged over the ranks (DistributedDataParallel)."""
    if _world.size == 1:
        return module
    return DistributedDataParallel(module, gradient_as_bucket_view=True)


def local_gradients(module):
    """A context in which gradients stay on this rank, to be averaged with later ones."""
    if isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return contextlib.nullcontext()


@contextlib.contextmanager
def agreeing_on_memory():
    """Memory that runs out inside on any rank does so on every rank.

    No rank may wait for another inside.
    """
    if _world.size == 1:
        yield
        return
    failure = None
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        failure = str(error)
    failures = [one for one in gather(failure) if one is not None]
    if failures:
        raise torch.OutOfMemoryError(failures[0])


@contextlib.contextmanager
def memory_ends_all():
    """Memory that runs out inside on some ranks alone would leave the others waiting: all end."""
    try:
        yield
    except RuntimeError as error:
        if _world.size == 1 or not is_out_of_memory(error):
            raise
        raise Lost(
            f"out of memory on rank {_world.rank} in the middle of a training, although the steps "
            "that were tried had enough: is another program using its device?"
        ) from error
