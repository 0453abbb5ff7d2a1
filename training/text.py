"""Tokens of a byte-level tokenizer as text, one after the other."""


class TextStream:
    """Token by token into text; a character that is split over tokens comes with its last byte."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._waiting = []  # tokens that end within a character

    def text(self, token):
        """The text that is complete with one more token."""
        self._waiting.append(token)
        text = self.rest()
        if text.endswith("\ufffd"):
            return ""
        self._waiting = []
        return text

    def rest(self):
        """What is left at the end: replacement characters for an incomplete one."""
        return self._tokenizer.decode(self._waiting, skip_special_tokens=False)
