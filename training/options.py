"""The command-line options of a configuration: one for each field of ExperimentConfig."""

from dataclasses import fields

from training.config import PRESETS, ExperimentConfig


def default_text(name, default):
    """A field's default, or one for each preset where they differ."""
    values = {preset: changes.get(name, default) for preset, changes in PRESETS.items()}

    def show(value):
        return " ".join(value) if isinstance(value, tuple) else value

    if len(set(values.values())) == 1:
        return f"(default: {show(default)})"
    return "(default: " + ", ".join(f"{preset} {show(v)}" for preset, v in values.items()) + ")"


def add_options(parser):
    """Add an option for every field of ``ExperimentConfig``, in the groups that the fields name."""
    groups = {}
    for item in fields(ExperimentConfig):
        if "group" not in item.metadata:
            continue
        title = item.metadata["group"]
        group = groups.setdefault(title, None) or parser.add_argument_group(title)
        groups[title] = group
        typed = isinstance(item.default, str | int | float) and not isinstance(item.default, bool)
        options = ({"type": type(item.default)} if typed else {}) | item.metadata["argparse"]
        text = f"{item.metadata['help']} {default_text(item.name, item.default)}"
        group.add_argument(f"--{item.name.replace('_', '-')}", help=text, **options)
