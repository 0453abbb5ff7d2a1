"""How every command ends: the exit code, and one line for an error."""

import argparse
import contextlib
import errno
import io
import signal
import sys

import pytest

from machine.command import UserError, checked_options, counted, run_command, say


def test_one_is_one_and_all_else_are_many():
    counts = [counted(count, "block") for count in (0, 1, 2, 1200)]
    assert counts == ["0 blocks", "1 block", "2 blocks", "1,200 blocks"]


def run(story, *argv, **options):
    return run_command(argparse.ArgumentParser(), story, list(argv), **options)


def raising(error):
    def story(arguments):
        raise error

    return story


def test_the_storys_code_is_the_commands():
    assert run(lambda arguments: None) == 0
    assert run(lambda arguments: 3) == 3


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("--lr 0 is too low"), 2, "error: --lr 0 is too low\n"),
        (
            OSError(errno.ENOSPC, "No space left", "a.npz"),
            1,
            "error: a.npz: cannot be written (No space left): free some space on the disk and "
            "start again\n",
        ),
        (
            OSError(errno.EACCES, "Permission denied", "a.npz"),
            1,
            "error: a.npz: cannot be written (Permission denied): make its folder writable or "
            "choose another one\n",
        ),
        (
            OSError(errno.EROFS, "Read-only", "a.npz"),
            1,
            "error: a.npz: cannot be written (Read-only): choose another folder\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted: 2 kept\n"),
    ],
)
def test_an_error_is_one_line_and_a_code(capsys, error, code, line):
    assert run(raising(error), kept=": 2 kept") == code
    assert capsys.readouterr() == ("", line)


def test_sigterm_is_a_stop_too(capsys):
    assert run(lambda arguments: signal.raise_signal(signal.SIGTERM)) == 143
    assert capsys.readouterr().err == "terminated\n"


def test_debug_shows_the_traceback_and_a_bug_always_does():
    with pytest.raises(UserError):
        run(raising(UserError("x")), "--debug")
    with pytest.raises(ValueError, match="a bug"):
        run(raising(ValueError("a bug")))


def test_a_value_error_about_options_is_the_users():
    with pytest.raises(UserError, match="too low"), checked_options():
        raise ValueError("too low")


def test_a_terminal_without_a_character_shows_another(monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    assert run(lambda arguments: print("1 ± 2")) == 0
    assert narrow.buffer.getvalue() == b"1 ? 2\n"


def test_what_is_said_goes_to_stderr_or_nowhere(capsys):
    say("a line")
    assert capsys.readouterr() == ("", "a line\n")
    with contextlib.redirect_stderr(None):
        assert run(lambda arguments: say("nobody hears")) == 0
    assert capsys.readouterr() == ("", "")
