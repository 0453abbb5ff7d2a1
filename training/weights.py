"""A trained window model on the disk: its weights, and beside them what rebuilds it and decodes.

<folder>/window_model_weights.pt     the state_dict, for torch.load(..., weights_only=True)
<folder>/window_model_config.json    the constructor's arguments, and the weights' checksum
<folder>/tokenizer.json              of the data, where there is one
"""

import hashlib
import json
from pathlib import Path

import tokenizers
import torch

from gpt_win import GPTWindowModel
from machine.files import DAMAGE, atomic_write, file_sha256, read_file, write_json
from training.tokens import TOKENIZER_NAME

WEIGHTS_NAME, WEIGHTS_CONFIG_NAME = "window_model_weights.pt", "window_model_config.json"


class WeightsError(ValueError):
    """Weights that cannot be used; the message names the file and the remedy."""


def save_window_weights(model, arguments, tokenizer, folder):
    """Write a GPTWindowModel's weights, with the checksum in the file that is written last.

    arguments: its constructor's; tokenizer: path of the tokenizer.json to copy, or None.
    """
    folder = Path(folder)
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    atomic_write(folder / WEIGHTS_NAME, lambda file: torch.save(weights, file))
    if tokenizer is not None:
        content = Path(tokenizer).read_bytes()
        atomic_write(folder / TOKENIZER_NAME, lambda file: file.write(content))
    about = {
        "model": "GPTWindowModel",
        "arguments": arguments,
        "tokenizer": None if tokenizer is None else TOKENIZER_NAME,
        "tokenizer_sha256": None if tokenizer is None else file_sha256(folder / TOKENIZER_NAME),
        "weights": WEIGHTS_NAME,
        "weights_sha256": file_sha256(folder / WEIGHTS_NAME),
    }
    write_json(folder / WEIGHTS_CONFIG_NAME, about)


def load_window_model(path=f"output/{WEIGHTS_NAME}", device="cpu"):
    """The GPTWindowModel of saved weights, in evaluation mode; nothing in the file is executed.

    path: the weights; their window_model_config.json lies in the same folder.  Raises WeightsError.
    """
    path = Path(path)
    about = _read_config(path.parent / WEIGHTS_CONFIG_NAME)
    try:
        found = file_sha256(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from None
    if found is None:
        raise WeightsError(f"{path}: no such file: python main.py writes it (arm window)")
    if about["weights"] != path.name or found != about["weights_sha256"]:
        raise WeightsError(
            f"{path}: damaged, or not the weights that {WEIGHTS_CONFIG_NAME} was written with: "
            "train them again, or name others"
        )
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        model = GPTWindowModel(**about["arguments"])
        model.load_state_dict(weights)
    # what torch raises over foreign weights has no common class, and much to say
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise WeightsError(f"{path}: no weights of this suite ({reason})") from None
    return model.to(device).eval()


def load_tokenizer(path, vocab_size):
    """The ``tokenizers.Tokenizer`` saved beside the weights ``path`` of a model of ``vocab_size``.

    Raises WeightsError where it is missing, damaged or another than the model was trained with.
    """
    about = _read_config(Path(path).parent / WEIGHTS_CONFIG_NAME)
    path = Path(path).parent / TOKENIZER_NAME
    remedy = "without the tokenizer.json of its data the model has no text"
    content = read_file(path, WeightsError, remedy)
    known = about.get("tokenizer_sha256")  # weights of earlier versions have none
    if known is not None and known != hashlib.sha256(content).hexdigest():
        raise WeightsError(f"{path}: damaged, or not the tokenizer that the model was trained with")
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # it raises nothing more special
        reason = " ".join(str(error).split())[:120]
        raise WeightsError(f"{path}: no tokenizer ({reason})") from None
    tokens = tokenizer.get_vocab_size()
    # the model's vocabulary ends with the last token of its data, which need not be the tokenizer's
    if tokens < vocab_size or (known is None and tokens > vocab_size):
        raise WeightsError(
            f"{path}: has {tokens:,} tokens and the model {vocab_size:,}: not the tokenizer that "
            "the model was trained with"
        )
    tokenizer.encode_special_tokens = True  # as in the data: a prompt cannot end the text
    return tokenizer


def _read_config(path):
    text = read_file(path, WeightsError, "python main.py writes it")
    try:
        about = json.loads(text)
        if not {"arguments", "weights", "weights_sha256"} <= set(about):
            raise ValueError("it is incomplete")
        if about.get("model") != "GPTWindowModel":
            raise ValueError(f"it is of another model, {about.get('model')!r}")
    except (*DAMAGE, KeyError) as error:
        raise WeightsError(f"{path}: damaged ({error}): train the model again") from None
    return about
