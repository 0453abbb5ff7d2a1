"""Stops by Ctrl-C and SIGTERM: as exceptions, or waiting for the end of a write."""

import contextlib
import signal
import threading

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM, as an exception: what handles Ctrl-C handles it too."""


@contextlib.contextmanager
def terminable():
    """SIGTERM raises Terminated inside the block, as Ctrl-C raises KeyboardInterrupt."""

    def terminate(signum, frame):
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def finishing():
    """Ctrl-C and SIGTERM wait for the end of the block, a second one does not."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers, waiting = {}, []

    def restore():
        while handlers:
            signal.signal(*handlers.popitem())

    def wait(signum, frame):
        waiting.append(signum)
        if len(waiting) > 1:
            restore()
            signal.raise_signal(signum)

    try:
        for signum in STOP_SIGNALS:
            handlers[signum] = signal.getsignal(signum)
            signal.signal(signum, wait)
        yield
    finally:
        restore()
    if waiting:
        signal.raise_signal(waiting[0])
