"""What studies, their points and trainings without room are called.  Needs no torch."""

STUDIES = ("lengths", "patterns")
NO_ROOM = "out_of_memory"


def point_name(study, config):
    """What the folder of a point is called: ``rotary_1024``, of a study of patterns ``rotary``."""
    kind = config["positions"]
    return f"{kind}_{config['seq_len']}" if study == "lengths" else kind
