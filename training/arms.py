"""The arms: models under comparison, and the patterns that their names mean."""

from analysis.values import pattern_of_arm

# arm -> its full attention; None: the window model, as for arms that name a pattern (w64-d8)
ARMS = {"baseline": "dense", "window": None, "fused": "fused", "published": "published"}
DEFAULT_ARMS = ("baseline", "window", "fused")


def pattern_options(config, arm):
    """The pattern of an arm of the window model, as GPTWindowModel takes it, else None.

    config: the fields of an ExperimentConfig, a dict.
    """
    if arm == "window":
        names = ("window_size", "dilation", "full_heads", "stagger", "sink_tokens")
        return {name: config[name] for name in names}
    options = pattern_of_arm(arm)
    if options is None:
        return None
    every = options.pop("full_layers")
    if every > config["layers"]:
        raise ValueError(f"one layer of every {every} is full, of {config['layers']} none")
    if every:
        of_layers = [options["full_heads"]] * config["layers"]
        for layer in range(every - 1, config["layers"], every):
            of_layers[layer] = config["n_heads"]
        options["full_heads"] = tuple(of_layers)
    return options | {"sink_tokens": config["sink_tokens"]}


def patterns_of_arm(config, arm):
    """The ``attention.pattern.Pattern`` of every layer of an arm, a list.

    config: the fields of an ExperimentConfig, a dict.
    """
    from attention.pattern import FULL
    from gpt_win import layer_patterns

    options = pattern_options(config, arm)
    if options is None:
        return [FULL] * config["layers"]
    return layer_patterns(config["layers"], config["n_heads"], **options)


def arm_density(config, arm):
    """The share of the causal pairs that an arm keeps, of all its heads."""
    from attention.pattern import layer_density

    seq_len, n_heads = config["seq_len"], config["n_heads"]
    kept = [layer_density(seq_len, p, n_heads) for p in patterns_of_arm(config, arm)]
    return sum(kept) / len(kept)
