"""The command-line options of a configuration: one for each field of ExperimentConfig."""

from dataclasses import fields

from training.config import PRESETS, ExperimentConfig


def add_options(parser):
    """Add an option for every field of ``ExperimentConfig``, in the groups that the fields name."""
    groups = {}
    for item in fields(ExperimentConfig):
        if not item.metadata:  # of no option
            continue
        title = item.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        options = dict(item.metadata["argparse"])
        if item.type in (int, float, str):
            options["type"] = item.type
        flag = "--" + item.name.replace("_", "-")
        text = f"{item.metadata['help']} {_default_text(item)}"
        groups[title].add_argument(flag, help=text, **options)


def _default_text(item):
    """A field's default, or one for each preset where they differ."""
    values = {preset: changes.get(item.name, item.default) for preset, changes in PRESETS.items()}
    if len(set(values.values())) > 1:
        return "(default: " + ", ".join(f"{preset} {x}" for preset, x in values.items()) + ")"
    several = isinstance(item.default, tuple)
    return f"(default: {' '.join(item.default) if several else item.default})"
