"""Text from a trained window model: ``python generate.py "def parse("`` goes on from a prompt.

Prints the prompt and what follows token by token to standard output, and everything else to
standard error.  The method behind it is ``generate`` of the models (gpt.py).
"""

import argparse
import os
import sys
import time

import torch

from generation.sampling import check_count, check_sampling
from machine.command import say
from machine.device import device_name, is_out_of_memory, resolve_device
from training.prepare import END_OF_TEXT
from training.text import TextStream
from training.weights import WEIGHTS_NAME, load_tokenizer, load_window_model

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


# --- the command line ----------------------------------------------------------------------------
def build_parser():
    """The command line, with every default in its help."""
    parser = argparse.ArgumentParser(
        description="Go on from a prompt with the window model that python main.py trained. Prints "
        "the prompt and what follows; stops after --tokens, at the end of the text, or, with "
        "learned positions, where the model's sequence is full.",
        epilog='example: python generate.py "def parse(" --tokens 100 --temperature 0.5 (exit '
        "codes: 0 done, 1 it could not be written or memory ran out, 2 wrong options, weights or "
        "prompt, 130 interrupted)",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("prompt", metavar="PROMPT", help="text to go on from; -: standard input")
    for option, default, text in (
        ("--weights", f"output/{WEIGHTS_NAME}", "the model, its config and tokenizer beside it"),
        ("--tokens", 200, "tokens to generate, at most"),
        ("--temperature", 0.8, "0: always the most probable token; 1: the model's probabilities"),
        ("--top-k", 50, "draw only from so many most probable tokens; 0: from all"),
        ("--top-p", 1.0, "draw only from the most probable tokens that reach this probability"),
        ("--seed", 0, "of the drawing"),
        ("--device", "auto", "auto, cpu, cuda or cuda:N"),
    ):
        parser.add_argument(option, type=type(default), default=default, help=text)
    hidden = argparse.SUPPRESS
    parser.add_argument(
        "--debug", action="store_true", default=hidden, help="show the traceback of an error"
    )
    return parser


def sampling_of(args):
    """temperature, top_k and top_p of the options; ValueError for those out of range."""
    check_count("--tokens", args.tokens, 0)
    check_count("--top-k", args.top_k, 0)
    check_sampling(args.temperature, args.top_k or None, args.top_p)
    if not -(2**63) <= args.seed < 2**64:
        raise ValueError(f"--seed must fit into 64 bits, got {args.seed}")
    return args.temperature, args.top_k or None, args.top_p if args.top_p < 1 else None


def read_prompt(argument):
    """The prompt, ``-`` from standard input; ValueError where it is empty or no UTF-8."""
    if argument == "-" and sys.stdin is None:
        raise ValueError("standard input is closed: give the prompt as an argument")
    try:
        text = sys.stdin.buffer.read().decode() if argument == "-" else argument
        text.encode()  # an argument's bytes that are no UTF-8 come as surrogates
    except UnicodeError as error:
        raise ValueError(f"the prompt is not UTF-8 ({error.reason})") from None
    if not text:
        raise ValueError("the prompt is empty: give at least one character")
    return text


def room_for(model, prompt, tokens):
    """How many tokens fit behind ``prompt`` tokens; ValueError where none does."""
    if model.position_embeddings is None:
        return tokens
    room = model.max_seq_len - prompt
    if room < min(tokens, 1):
        raise ValueError(
            f"the sequence is full: the prompt has {prompt:,} tokens, and the model's learned "
            f"positions end at {model.max_seq_len:,}: shorten it"
        )
    return min(tokens, room)


def write(text):
    sys.stdout.write(text)
    sys.stdout.flush()


def run(args):
    """Generate as the options say; raises ValueError, also for what the files hold."""
    sampling = sampling_of(args)
    prompt = read_prompt(args.prompt)
    device = resolve_device(args.device)
    model = load_window_model(args.weights, device)
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise ValueError(f"{args.weights}: not all weights are finite: the training diverged")
    tokenizer = load_tokenizer(args.weights, len(model.word_embeddings.weight))
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    room = room_for(model, len(ids), args.tokens)
    generator = torch.Generator(device).manual_seed(args.seed)
    stream = model.stream([ids], room, *sampling, generator)
    end, text = tokenizer.token_to_id(END_OF_TEXT), TextStream(tokenizer)
    count, ended, started = 0, False, time.perf_counter()
    try:
        write(prompt)
        for token in map(int, stream):
            count += 1
            ended = token == end
            if ended:
                break
            write(text.text(token))
        write(text.rest() + "\n")
    except KeyboardInterrupt:
        write("\n")
        say(_speed(count, started, device))
        raise
    say(_speed(count, started, device))
    if ended:
        say("stopped: the model ended the text")
    elif count < args.tokens:
        say(f"stopped: the sequence is full, learned positions end at {model.max_seq_len:,}")


def _speed(count, started, device):
    seconds = time.perf_counter() - started
    return f"{count:,} tokens, {count / seconds:,.1f} tokens/s on {device_name(device)}"


def main(argv=None):
    """The command line; returns the exit code (see --help)."""
    args = build_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a character gets a ?
            stream.reconfigure(errors="replace")
    try:
        run(args)
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # as of `| head`: what was read is all that was wanted
        _drop_output()
        return 0
    except (ValueError, OSError, RuntimeError) as error:
        if hasattr(args, "debug"):
            raise
        if isinstance(error, ValueError):
            say(f"error: {error}")
            return EXIT_USAGE
        if isinstance(error, OSError):
            _drop_output()
            say(f"error: the text could not be written ({error.strerror})")
        elif is_out_of_memory(error):
            say(f"error: out of memory on {args.device}: fewer --tokens need less")
        else:
            raise
        return EXIT_FAILED
    return 0


def _drop_output():
    """Nothing more can be written: the interpreter must not try it again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
