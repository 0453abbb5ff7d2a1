"""A study's file: what its points are called, what it holds and how it is read.  Needs no torch."""

import json

from analysis.metrics import MetricsError, fitting
from machine.files import read_file

STUDIES = ("lengths", "patterns")
NO_ROOM = "out_of_memory"


def point_name(study, config):
    """What the folder of a point is called: ``rotary_1024``, of a study of patterns ``rotary``."""
    kind = config["positions"]
    return f"{kind}_{config['seq_len']}" if study == "lengths" else kind


def read_study(path):
    """The content of a study's .json file; MetricsError names the file and the remedy."""
    text = read_file(path, MetricsError, "python compare_models.py --study patterns writes it")
    with fitting(path):
        content = json.loads(text)
        if content["study"] not in STUDIES or not content["points"]:
            raise ValueError("it holds no study")
    return content
