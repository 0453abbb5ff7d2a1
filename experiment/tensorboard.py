"""A saved experiment as logs of TensorBoard, which need the package ``tensorboard``."""

from pathlib import Path

from analysis.report import format_report
from analysis.values import trainings_of
from machine.command import UserError

HYPERPARAMETERS = ("seq_len", "d_model", "n_heads", "layers", "batch_size", "lr", "positions")


def check_tensorboard():
    """UserError where TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise UserError("--tensorboard needs a package: pip install tensorboard") from None


def write_tensorboard(metrics, metadata, folder):
    """Write a run for each training, <folder>/<arm>/block_<n>, and one with the report's text.

    A training has its losses over steps, and as hyperparameters its sizes, with its outcomes.
    """
    from torch.utils.tensorboard import SummaryWriter

    folder = Path(folder)
    sizes = {key: metadata["config"][key] for key in HYPERPARAMETERS}
    for arm, training in trainings_of(metrics):
        with SummaryWriter(folder / arm / f"block_{training['block'] + 1}") as writer:
            for step, loss in enumerate(training["losses"].tolist(), start=1):
                writer.add_scalar("training_loss", loss, step)
            curve = training["curve"] or {"steps": [], "losses": []}
            for step, loss in zip(curve["steps"], curve["losses"], strict=True):
                writer.add_scalar("validation_loss", loss, step)
            outcomes = {f"outcome/{key}": training[key] for key in ("training_time", "val_loss")}
            about = sizes | {"arm": arm, "seed": training["seed"]}
            writer.add_hparams(about, outcomes, run_name=".")
    with SummaryWriter(folder / "report") as writer:
        lines = format_report(metrics, metadata).splitlines()
        writer.add_text("report", "\n".join("    " + line for line in lines))  # as it stands
