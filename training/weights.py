"""Trained models on the disk: their weights, and what rebuilds them and decodes.

<folder>/weights/<arm>.safetensors   the state_dict; its metadata has ``about``, a JSON text: the
                                     model's class, its constructor's arguments, the checksums of
                                     the tokenizer and of all else here, and what the caller adds
<folder>/window_model_weights.pt     the window arm's weights again, as in the published experiment:
                                     the state_dict, for torch.load(..., weights_only=True)
<folder>/window_model_config.json    the constructor's arguments, and the checksums of the weights
                                     and of the tokenizer
<folder>/tokenizer.json              of the data, where there is one
"""

import hashlib
import io
import json
from contextlib import suppress
from pathlib import Path

import safetensors.torch
import tokenizers
import torch
from safetensors import safe_open

from gpt import GPTModel
from gpt_win import GPTWindowModel
from machine.command import UserError
from machine.files import atomic_write, file_sha256, json_sha256, read_file, write_json
from training.tokens import TOKENIZER_NAME

WEIGHTS_FOLDER, SUFFIX = "weights", ".safetensors"
WEIGHTS_NAME, WEIGHTS_CONFIG_NAME = "window_model_weights.pt", "window_model_config.json"
MODELS = {model.__name__: model for model in (GPTModel, GPTWindowModel)}


def save_weights(model, arguments, about, tokenizer, folder):
    """Write a model's weights with what rebuilds it inside; returns the path.

    arguments: its constructor's; about: a dict for JSON, with ``arm``, the file's name.
    tokenizer: path of the tokenizer.json to copy into the folder, or None.
    """
    path = Path(folder) / WEIGHTS_FOLDER / f"{about['arm']}{SUFFIX}"
    weights = _on_cpu(model)
    about = {"model": type(model).__name__, "arguments": arguments} | about
    about = json.loads(json.dumps(about | {"tokenizer_sha256": _copy(tokenizer, folder)}))
    about["sha256"] = _sha256(about, weights)
    content = safetensors.torch.save(weights, {"about": json.dumps(about)})
    atomic_write(path, lambda file: file.write(content))
    return path


def save_window_weights(model, arguments, tokenizer, folder):
    """Write a GPTWindowModel's weights as the published experiment does.

    The config, which names the others' checksums, comes last.
    arguments: its constructor's; tokenizer: path of the tokenizer.json to copy, or None.
    """
    folder = Path(folder)
    content = io.BytesIO()  # torch.save reports a full disk in words of its own
    torch.save(_on_cpu(model), content)
    atomic_write(folder / WEIGHTS_NAME, lambda file: file.write(content.getbuffer()))
    about = {"model": "GPTWindowModel", "arguments": arguments}
    about["weights_sha256"] = file_sha256(folder / WEIGHTS_NAME)
    about["tokenizer_sha256"] = _copy(tokenizer, folder)
    write_json(folder / WEIGHTS_CONFIG_NAME, about)


def _on_cpu(model):
    return {name: value.cpu() for name, value in model.state_dict().items()}


def _copy(tokenizer, folder):
    """Copy the tokenizer into a folder; returns its checksum, None where there is none."""
    if tokenizer is None:
        return None
    content = Path(tokenizer).read_bytes()
    path = Path(folder) / TOKENIZER_NAME
    atomic_write(path, lambda file: file.write(content))
    return file_sha256(path)


def _sha256(about, weights):
    """The checksum of all that a safetensors file holds, but for the checksum itself."""
    others = {key: value for key, value in about.items() if key != "sha256"}
    digest = hashlib.sha256(json_sha256(others).encode())
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def load_model(path=f"output/{WEIGHTS_NAME}", device="cpu"):
    """The model of saved weights, in evaluation mode; nothing in the file is executed.

    path: <arm>.safetensors, or window_model_weights.pt with its window_model_config.json beside it.
    Raises UserError.
    """
    about = read_about(path)
    is_single = Path(path).suffix == SUFFIX
    read_file(path, UserError, "python main.py writes it (arm window)")
    # a stop between writing the two files leaves weights and config of different trainings
    if not is_single and file_sha256(path) != about["weights_sha256"]:
        raise UserError(
            f"{path}: damaged, or not the weights that {WEIGHTS_CONFIG_NAME} was written with: "
            "train them again, or name others"
        )
    try:
        if is_single:
            weights = safetensors.torch.load_file(path)
            if _sha256(about, weights) != about["sha256"]:
                raise ValueError("its checksum is another")
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        build = MODELS[about["model"]]
        with torch.device("meta"):  # finds sizes that do not fit before they take memory
            build(**about["arguments"]).load_state_dict(weights, assign=True)
        model = build(**about["arguments"])
        model.load_state_dict(weights)
    # what torch raises over foreign weights has no common class, and much to say
    except Exception as error:
        words = "damaged, or no weights" if is_single else "no weights"
        raise UserError(f"{path}: {words} of this suite ({_one_line(error)})") from None
    return model.to(device).eval()


load_window_model = load_model  # its name while only the window arm was saved


def load_tokenizer(path, vocab_size):
    """The ``tokenizers.Tokenizer`` saved with the weights ``path`` of a model of ``vocab_size``.

    It lies beside them, or, where all arms' weights lie in a folder of their own, beside that.
    Raises UserError where it is missing, damaged or another than the model was trained with.
    """
    about, weights = read_about(path), Path(path)
    is_single = weights.suffix == SUFFIX
    path = weights.parent / TOKENIZER_NAME
    if is_single and not path.exists():
        path = weights.resolve().parent.parent / TOKENIZER_NAME
    content = read_file(path, UserError, "the model has no text without its data's tokenizer")
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # it raises nothing more special
        raise UserError(f"{path}: no tokenizer ({_one_line(error)})") from None
    known = about.get("tokenizer_sha256")  # weights of earlier versions have none
    if known not in (None, file_sha256(path)) or tokenizer.get_vocab_size() < vocab_size:
        source = weights.name if is_single else WEIGHTS_CONFIG_NAME
        raise UserError(f"{path}: damaged, or not the tokenizer that {source} was written with")
    tokenizer.encode_special_tokens = True  # as in the data: a prompt cannot end the text
    return tokenizer


def _one_line(error):
    return " ".join(str(error).split())[:120] or type(error).__name__


def read_about(path):
    """What is saved about weights: a dict with ``model`` and ``arguments`` at least.

    Raises UserError.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        return _read_config(path)
    read_file(path, UserError, "python main.py writes it for every arm")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
        if about["model"] in MODELS and {"arguments", "sha256"} <= set(about):
            return about
        reason = "it names no model"
    except Exception as error:  # the library's own, json's, and what foreign metadata make of it
        reason = _one_line(error)
    raise UserError(f"{path}: damaged, or no weights of this suite ({reason})")


def _read_config(weights):
    """The config beside the weights of that path, a dict."""
    path = Path(weights).parent / WEIGHTS_CONFIG_NAME
    remedy = f"python main.py writes it; {weights} needs it, as all weights but {SUFFIX} do"
    text = read_file(path, UserError, remedy)
    with suppress(ValueError, TypeError, KeyError):
        about = json.loads(text)
        if about["model"] == "GPTWindowModel" and {"arguments", "weights_sha256"} <= set(about):
            return about
    raise UserError(f"{path}: damaged, or not the config of a window model: train the model again")
