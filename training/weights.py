"""A trained window model on the disk: its weights, and beside them what rebuilds it and decodes.

<folder>/window_model_weights.pt     the state_dict, for torch.load(..., weights_only=True)
<folder>/window_model_config.json    the constructor's arguments, and both files' checksums
<folder>/tokenizer.json              of the data, where there is one
"""

import io
import json
from contextlib import suppress
from pathlib import Path

import tokenizers
import torch

from gpt_win import GPTWindowModel
from machine.command import UserError
from machine.files import atomic_write, file_sha256, read_file, write_json
from training.tokens import TOKENIZER_NAME

WEIGHTS_NAME, WEIGHTS_CONFIG_NAME = "window_model_weights.pt", "window_model_config.json"


def save_window_weights(model, arguments, tokenizer, folder):
    """Write a GPTWindowModel's weights; the config, which names the others' checksums, comes last.

    arguments: its constructor's; tokenizer: path of the tokenizer.json to copy, or None.
    """
    folder = Path(folder)
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    content = io.BytesIO()  # torch.save reports a full disk in words of its own
    torch.save(weights, content)
    atomic_write(folder / WEIGHTS_NAME, lambda file: file.write(content.getbuffer()))
    about = {"model": "GPTWindowModel", "arguments": arguments}
    about |= {"weights_sha256": file_sha256(folder / WEIGHTS_NAME), "tokenizer_sha256": None}
    if tokenizer is not None:
        text = Path(tokenizer).read_bytes()
        atomic_write(folder / TOKENIZER_NAME, lambda file: file.write(text))
        about["tokenizer_sha256"] = file_sha256(folder / TOKENIZER_NAME)
    write_json(folder / WEIGHTS_CONFIG_NAME, about)


def load_window_model(path=f"output/{WEIGHTS_NAME}", device="cpu"):
    """The GPTWindowModel of saved weights, in evaluation mode; nothing in the file is executed.

    path: the weights; their window_model_config.json lies in the same folder.  Raises UserError.
    """
    about = _read_config(path)
    read_file(path, UserError, "python main.py writes it (arm window)")
    # a stop between the two files leaves weights and config of different trainings
    if file_sha256(path) != about["weights_sha256"]:
        raise UserError(
            f"{path}: damaged, or not the weights that {WEIGHTS_CONFIG_NAME} was written with: "
            "train them again, or name others"
        )
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        with torch.device("meta"):  # sizes of other weights are found out before they take memory
            GPTWindowModel(**about["arguments"]).load_state_dict(weights, assign=True)
        model = GPTWindowModel(**about["arguments"])
        model.load_state_dict(weights)
    # what torch raises over foreign weights has no common class, and much to say
    except Exception as error:
        raise UserError(f"{path}: no weights of this suite ({_one_line(error)})") from None
    return model.to(device).eval()


def load_tokenizer(path, vocab_size):
    """The ``tokenizers.Tokenizer`` saved beside the weights ``path`` of a model of ``vocab_size``.

    Raises UserError where it is missing, damaged or another than the model was trained with.
    """
    about = _read_config(path)
    path = Path(path).parent / TOKENIZER_NAME
    content = read_file(path, UserError, "the model has no text without its data's tokenizer")
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # it raises nothing more special
        raise UserError(f"{path}: no tokenizer ({_one_line(error)})") from None
    known = about.get("tokenizer_sha256")  # weights of earlier versions have none
    if known not in (None, file_sha256(path)) or tokenizer.get_vocab_size() < vocab_size:
        raise UserError(
            f"{path}: damaged, or not the tokenizer that {WEIGHTS_CONFIG_NAME} was written with"
        )
    tokenizer.encode_special_tokens = True  # as in the data: a prompt cannot end the text
    return tokenizer


def _one_line(error):
    return " ".join(str(error).split())[:120] or type(error).__name__


def _read_config(weights):
    """What lies beside the weights of that path."""
    path = Path(weights).parent / WEIGHTS_CONFIG_NAME
    text = read_file(path, UserError, "python main.py writes it")
    with suppress(ValueError, TypeError, KeyError):
        about = json.loads(text)
        if about["model"] == "GPTWindowModel" and {"arguments", "weights_sha256"} <= set(about):
            return about
    raise UserError(f"{path}: damaged, or not the config of a window model: train the model again")
