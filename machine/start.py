"""The begin of a command that may run on several ranks: alone, or as torchrun started it."""

import os
from functools import partial

from machine.command import run_command


def run_on_ranks(parser, story, argv=None, kept=""):
    """``command.run_command`` as one process, or on every rank; returns the exit code."""
    command = partial(run_command, parser, story, argv, kept)
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        return command()
    from machine import ranks  # needs torch, for which one process need not wait here

    return ranks.run(command)
