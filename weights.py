"""A trained window model on the disk: its weights, and beside them what rebuilds it and decodes.

<folder>/window_model_weights.pt     the state_dict, for torch.load(..., weights_only=True)
<folder>/window_model_config.json    the constructor's arguments, and the weights' checksum
<folder>/tokenizer.json              of the data, where there is one
"""

from pathlib import Path

import torch

from gpt_win import GPTWindowModel
from metrics_utils import DAMAGE, atomic_write, file_sha256, sealed, unsealed

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
        atomic_write(folder / "tokenizer.json", lambda file: file.write(content))
    about = {
        "model": "GPTWindowModel",
        "arguments": arguments,
        "tokenizer": None if tokenizer is None else "tokenizer.json",
        "weights": WEIGHTS_NAME,
        "weights_sha256": file_sha256(folder / WEIGHTS_NAME),
    }
    text = sealed(about)
    atomic_write(folder / WEIGHTS_CONFIG_NAME, lambda file: file.write(text.encode()))


def load_window_model(path=f"output/{WEIGHTS_NAME}", device="cpu"):
    """The GPTWindowModel of saved weights, in evaluation mode; nothing in the file is executed.

    path: the weights; their window_model_config.json lies in the same folder.  Raises WeightsError.
    """
    path = Path(path)
    about = _read_config(path.with_name(WEIGHTS_CONFIG_NAME))
    if not path.is_file():
        raise WeightsError(f"{path}: no such file: python main.py writes it (arm window)")
    if about["weights"] != path.name or file_sha256(path) != about["weights_sha256"]:
        raise WeightsError(
            f"{path}: damaged, or not the weights that {WEIGHTS_CONFIG_NAME} was written with: "
            "train them again, or name others"
        )
    try:
        weights = torch.load(path, map_location=device, weights_only=True)
        model = GPTWindowModel(**about["arguments"]).to(device)
        model.load_state_dict(weights)
    # what torch raises over foreign weights has no common class
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(f"{path}: no weights of this suite ({reason[0]})") from None
    return model.eval()


def _read_config(path):
    try:
        about = unsealed(path.read_bytes())
        if not {"arguments", "weights", "weights_sha256"} <= set(about):
            raise ValueError("it is incomplete")
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file: python main.py writes it") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from None
    except (*DAMAGE, KeyError) as error:
        raise WeightsError(f"{path}: damaged ({error}): train the model again") from None
    return about
