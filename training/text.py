"""Tokens of a byte-level tokenizer as text, one after the other."""

import codecs

from training.tokens import TOKENIZER_NAME
from training.weights import WeightsError


def byte_characters():
    """The bytes by the characters that a byte-level tokenizer writes for them (as in GPT-2).

    Printable ones stand for themselves, the others are the characters from 256 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(256 + n): byte for n, byte in enumerate(others)}


class TextStream:
    """Token by token into text; a character that is split over tokens comes with its last byte."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._bytes = byte_characters()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def text(self, token):
        """The text that is complete with one more token; WeightsError for a foreign tokenizer."""
        word = self._tokenizer.id_to_token(token)
        try:
            return self._decoder.decode(bytes(self._bytes[character] for character in word))
        except (KeyError, TypeError):
            raise WeightsError(
                f"{TOKENIZER_NAME}: token {token} is {word!r}: no byte-level tokenizer"
            ) from None

    def rest(self):
        """What is left at the end: a replacement character for an incomplete one."""
        return self._decoder.decode(b"", final=True)
