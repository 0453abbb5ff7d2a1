"""A configuration as a TOML file, with which its experiment can be repeated or changed.

python main.py --config output/config.toml --output-dir again
"""

import difflib
import json
import sys
from dataclasses import fields

from machine.command import UserError
from machine.files import read_file
from training.config import ExperimentConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG_NAME = "config.toml"
KEPT = {item.name: item for item in fields(ExperimentConfig) if item.metadata}  # what is chosen
NAMES = ("preset", *KEPT)


def to_toml(values):
    """The file's text: every option in the groups of --help.

    values: the fields of an ExperimentConfig, a dict.  What the machine gave is left out: the
    ranks, and which GPU it was.
    """
    if values["device"].startswith("cuda"):
        values = {**values, "device": "auto"}
    start = "python"
    if values["shard_sequence"] > 1:  # alone it would be told that ranks are missing
        start = f"torchrun --standalone --nproc-per-node {values['world_size']}"
    lines = [f"# {start} main.py --config {CONFIG_NAME} repeats it; options beside that change it"]
    lines.append(_line("preset", values["preset"]))
    for name, item in KEPT.items():
        if item.metadata["group"]:
            lines += ["", f"[{item.metadata['group']}]"]
        lines.append(_line(name, values[name]))
    return "\n".join([*lines, ""])


def _line(name, value):
    """An option's line.  Its kinds of values are alike in JSON and TOML, but for DEL: escaped."""
    return f"{name} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f")


def read_config(path):
    """The options that a file gives, {name: value}, in whatever groups; values are not checked.

    Raises UserError, in one line, for what cannot be read and for what is no option.
    """
    content = read_file(path, UserError, "every experiment writes one into its --output-dir")
    try:
        tables = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no TOML ({error})") from None
    pairs = []
    for name, value in tables.items():
        pairs += value.items() if isinstance(value, dict) else [(name, value)]
    if unknown := [name for name, _ in pairs if name not in NAMES]:
        raise UserError(f"{path}: {'; '.join(map(_unknown, unknown))}")
    options = {}
    for name, value in pairs:
        if name in options:
            raise UserError(f"{path}: {name} is given twice")
        options[name] = value
    return options


def _unknown(name):
    nearest = difflib.get_close_matches(name, NAMES, 1)
    return f"{name} is no option" + "".join(f", {other} is" for other in nearest)
