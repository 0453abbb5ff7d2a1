"""``python -m attention`` draws a small pattern as text."""

import sys

from attention.pattern import draw_pattern

TITLE = "24 tokens, window_size 4, dilation 3: # near, o far, . causal but not attended"

if __name__ == "__main__":
    try:
        print(TITLE, draw_pattern(24, 4, 3), sep="\n", flush=True)
    except OSError as error:
        sys.stdout = None  # the interpreter must not try it again at its end
        if not isinstance(error, BrokenPipeError):  # as of head: it has seen all it wants
            sys.exit(f"error: the output could not be written ({error.strerror})")
