"""How every command of the suite starts and ends: streams, exit codes, one line for an error.

Knows nothing of what the commands do.
"""

import argparse
import errno
import importlib.metadata
import os
import signal
import sys
from contextlib import contextmanager

from tqdm import tqdm

SUITE_VERSION = "0.5.0"
DONE, FAILED, USAGE, TRAININGS_FAILED, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143
DISTURBED = TRAININGS_FAILED  # the same code, from a benchmark
GOES_ON = "finished trainings are kept, and the same command, without --restart, goes on from there"

# What to do about a file that cannot be written.
REMEDIES = {
    errno.ENOSPC: "free some space on the disk and start again",
    errno.EACCES: "make its folder writable or choose another one",
    errno.EISDIR: "a folder is in its place: move that away",
    errno.ENOTDIR: "a file is where its folder should be: move that away or choose another folder",
    errno.EEXIST: "a file is where its folder should be: move that away or choose another folder",
}


class UserError(ValueError):
    """What the user can mend: the message is one line that names the value and the remedy."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, as an exception: what handles Ctrl-C handles it too."""


def _terminate(signum, frame):
    raise Terminated


@contextmanager
def checked_options():
    """A context for code whose ValueErrors are about the user's options: they become UserErrors."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


def say(text):
    """Print a line for the person at the screen: on stderr, above progress bars.

    stdout is for results.  Where stderr cannot be written, nothing is said and all goes on.
    """
    try:
        tqdm.write(text, file=sys.stderr)
    except OSError:
        _mute("stderr")


def counted(count, noun):
    """A count with its noun: "1 block", "1,200 blocks"."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def bar(*arguments, **options):
    """A progress bar of tqdm, gone when it is full; none where stderr is no terminal."""
    return tqdm(*arguments, **options, leave=False, disable=None)


def _mute(name):
    """Throw away what goes to a stream from now on, so that no later write or flush fails."""
    setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (to the end)


class DefaultsInHelp(argparse.ArgumentDefaultsHelpFormatter):
    """Help texts with their defaults, except None, which would tell a reader nothing."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def _versions():
    """The suite's version and that of the torch installed, which is not imported."""
    try:
        torch = "torch " + importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = "no torch"
    return f"%(prog)s {SUITE_VERSION} ({torch})"


def run_command(parser, story, argv=None, kept=""):
    """Parse ``argv``, tell the ``story(arguments)`` and return the exit code.

    The story returns its exit code, None for done.  ``UserError`` ends it with 2, an OSError with
    1, each in one line (a traceback with --debug); any other exception is a bug and goes through.
    A reader that closes the pipe, as ``| head`` does, is no error.
    kept: what a stop by Ctrl-C or SIGTERM leaves, in words.  Adds the options that every command
    has, --version and --debug; ``arguments`` has ``debug`` only where the option is given.
    """
    text = "print the versions of the suite and of torch"
    parser.add_argument("--version", action="version", version=_versions(), help=text)
    text = "show the traceback of an error"
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=text)
    arguments = ()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: its text could go to the other one instead
            _mute(name)
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):  # a terminal without ± gets a ? and not a traceback
            stream.reconfigure(errors="replace")
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        try:
            arguments = parser.parse_args(argv)
        finally:
            print(end="", flush=True)  # the text of --help
        code = story(arguments) or DONE
        print(end="", flush=True)
        return code
    except Terminated:
        say("terminated" + kept)
        return TERMINATED
    except KeyboardInterrupt:
        say("interrupted" + kept)
        return INTERRUPTED
    except BrokenPipeError:
        _mute("stdout")
        return DONE
    except (UserError, OSError) as error:
        if "debug" in arguments:
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of torchrun, while a line is said
        return _complain(error)
    finally:
        signal.signal(signal.SIGTERM, before)


def _complain(error):
    """One line on stderr for an error; returns the exit code."""
    if isinstance(error, UserError):
        say(f"error: {error}")
        return USAGE
    reason = error.strerror or error
    if error.filename is None:  # of a stream, not of a file
        _mute("stdout")
        say(f"error: the output could not be written ({reason})")
    else:
        remedy = REMEDIES.get(error.errno, "choose another folder")
        say(f"error: {error.filename}: cannot be written ({reason}): {remedy}")
    return FAILED
