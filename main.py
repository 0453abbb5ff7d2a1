"""python main.py: the whole experiment, from the data to the plots.  See compare_models.py."""

import os
import signal
import sys


def experiment(arguments=None):
    """The experiment by the same command line, and what takes seconds to import."""
    from compare_models import main

    return main()


def command():
    """The command line, read before what takes seconds to import; returns the exit code."""
    try:
        from machine.command import run_command
        from studies.options import build_parser

        if int(os.environ.get("WORLD_SIZE") or 1) > 1:  # of torchrun's ranks one is to be heard
            code = experiment()
        else:
            kept = " before anything was started"
            code = run_command(build_parser(), experiment, kept=kept)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # impatience must not end in a traceback
        return code
    except KeyboardInterrupt:  # while those are being imported
        print("interrupted before anything was started", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(command())
