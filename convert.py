"""A trained model converted from full attention to a window: what it loses, at once and after a
little more training.

``python convert.py output/weights/fused.safetensors`` goes on from what main.py has written.
"""

import argparse
import sys
from pathlib import Path

from machine.command import FAILED, DefaultsInHelp, run_command, say
from machine.files import check_writable, write_json
from training.config import COMPILE_MODES


def build_parser():
    """The command line, with every default in its help."""
    parser = argparse.ArgumentParser(
        description="Give the heads of a model that was trained with full attention a window, and "
        "compare its validation loss with that of the full model, without training and after a "
        "little. Precision, batch and schedule are those of its training.",
        epilog="example: python convert.py output/weights/fused.safetensors --full-heads 0 1",
        formatter_class=DefaultsInHelp,
    )
    add = parser.add_argument
    add("path", metavar="WEIGHTS", help="output/weights/fused.safetensors")
    add("--data", help="file of tokens (default: that of its training)")
    text = "pattern that the heads get: the name of an arm without full heads"
    add("--pattern", default="w96-d0", help=text)
    text = "first tokens that every later one attends to as well"
    add("--sink-tokens", type=int, default=0, help=text)
    text = "steps of fine-tuning, the first tenth of them a linear warm-up"
    add("--steps", type=int, default=200, help=text)
    add("--lr", type=float, help="peak learning rate (default: a tenth of the training's)")
    add("--seed", type=int, default=1, help="added to the seed of the training, for other batches")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--output", default="output/conversion.json", help="file of the results")
    text = "heads of every layer that stay full, the first and the most important ones (default: "
    text += "0 1 2 4, where there are more)"
    add("--full-heads", type=int, nargs="+", metavar="F", help=text)
    add("--compile", choices=COMPILE_MODES, help="torch.compile (default: as in its training)")
    return parser


def tell(args):
    """Convert, saving each row when it is known, and print the table."""
    from analysis.words import report_text
    from machine.device import is_out_of_memory
    from studies.conversion import conversion_page
    from studies.convert import convert

    options = {key: value for key, value in vars(args).items() if key not in ("output", "debug")}
    check_writable(Path(args.output).parent)
    try:
        content = convert(**options, save=lambda content: write_json(args.output, content))
    except RuntimeError as error:
        if "debug" in args or not is_out_of_memory(error):
            raise
        say(f"error: out of memory on {args.device}: {error}".splitlines()[0])
        return FAILED
    print(report_text(conversion_page(content).sections), end="")
    say(f"written: {args.output}")


def main(argv=None):
    """The command line; returns the exit code."""
    return run_command(build_parser(), tell, argv, kept=": the rows that were finished are kept")


if __name__ == "__main__":
    sys.exit(main())
