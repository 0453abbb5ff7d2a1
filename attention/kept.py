"""A cache for what is made once for its arguments: masks, tables, which kernels work."""

import functools
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import torch


def constant_of_a_graph(function):
    """A decorator: Dynamo does not trace into the function, its result is a constant of the graph.

    The result must have its tensors in a tuple or a list: Dynamo would take a bare one for the
    first that it has met.  This is ``torch.compiler.assume_constant_result``, which sets the same
    mark but loads the compiler to do so; that costs seconds, also for those who compile nothing.
    """
    function._dynamo_marked_constant = True
    return function


def recording():
    """Whether a CUDA graph is being recorded."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def kept(most):
    """A decorator: the ``most`` results that were used last are kept, None: all of them.

    Whatever mode the caller is in has no influence on them.  The first caller may be inside of
    autocast, inference_mode, checkpointing, fake tensors, a functorch transform or another default
    device, and what was made there would be wrong for all others.  Such modes belong to a thread,
    so the function runs on a thread of its own.  What is made while a CUDA graph is recorded lies
    in the graph's memory: it is not kept.
    """

    def decorate(function):
        results, lock = OrderedDict(), threading.Lock()

        @functools.wraps(function)
        def found(*arguments):
            with lock:
                if arguments in results:
                    results.move_to_end(arguments)
                    return results[arguments]
            if recording():
                return function(*arguments)
            made = _aside(function, arguments)
            with lock:
                results[arguments] = made
                if most is not None and len(results) > most:
                    results.popitem(last=False)
            return made

        def clear():
            """Forget the results.  Lists are emptied, for Dynamo never lets go of a constant."""
            with lock:
                for result in results.values():
                    if isinstance(result, list):
                        result.clear()
                results.clear()

        found.clear, found.results = clear, results
        return found

    return decorate


def _aside(function, arguments):
    """What the function returns on a thread of its own, on the caller's CUDA device and streams."""
    devices = {x for x in arguments if isinstance(x, torch.device) and x.type == "cuda"}
    stream = torch.cuda.current_stream(devices.pop()) if devices else None

    def on_stream():
        if stream is None:  # CUDA must not be initialized inside a checkpoint
            return function(*arguments)
        # a thread begins on GPU 0, which a stream of another would leave with a context of its own
        with torch.cuda.device(stream.device), torch.cuda.stream(stream):
            return function(*arguments)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(on_stream).result()
