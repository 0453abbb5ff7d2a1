"""``python -m attention`` draws a small pattern as text."""

from attention.pattern import draw_pattern

TITLE = "24 tokens, window_size 4, dilation 3: # near, o far, . causal but not attended"

if __name__ == "__main__":
    print(TITLE, draw_pattern(24, 4, 3), sep="\n")
