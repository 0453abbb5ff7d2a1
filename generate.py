"""Text from a trained model: ``python generate.py "def parse("`` goes on from a prompt.

Prints the prompt and what follows token by token to standard output, and everything else to
standard error.  The method behind it is ``stream`` of the models (generation/tokens.py).
"""

import argparse
import sys
import time
from functools import partial

from tokenizers.decoders import DecodeStream

from machine.command import FAILED, UserError, checked_options, counted, run_command, say
from training.prepare import END_OF_TEXT


def build_parser():
    """The command line, with every default in its help."""
    parser = argparse.ArgumentParser(
        description="Go on from a prompt with a model that python main.py trained. Prints "
        "the prompt and what follows; stops after --tokens, at the end of the text, or, with "
        "learned positions, where the model's sequence is full.",
        epilog='example: python generate.py "def parse(" --tokens 100 --temperature 0.5',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("prompt", metavar="PROMPT", help="text to go on from; -: standard input")
    text = "the model: window, or output/weights/ARM.safetensors"
    add("--weights", default="output/window_model_weights.pt", help=text)
    add("--tokens", type=int, default=200, help="tokens to generate, at most")
    text = "0: always the most probable token; 1: the model's probabilities"
    add("--temperature", type=float, default=0.8, help=text)
    text = "draw only from this many most probable tokens; 0: from all"
    add("--top-k", type=int, default=50, help=text)
    text = "draw only from the most probable tokens that reach this probability"
    add("--top-p", type=float, default=1.0, help=text)
    add("--seed", type=int, default=0, help="decides what is drawn")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser


def read_prompt(argument):
    """The prompt, ``-`` from standard input; UserError where it is empty or no UTF-8."""
    if argument == "-" and sys.stdin is None:
        raise UserError("standard input is closed: give the prompt as an argument")
    try:
        text = sys.stdin.buffer.read().decode() if argument == "-" else argument
        text.encode()  # an argument's bytes that are no UTF-8 come as surrogates
    except UnicodeError as error:
        raise UserError(f"the prompt is not UTF-8 ({error.reason})") from None
    if not text:
        raise UserError("the prompt is empty: give at least one character")
    return text


def room_for(model, prompt, tokens):
    """How many of ``tokens`` new ones fit behind ``prompt`` tokens; UserError where none does."""
    if model.position_embeddings is None:
        return tokens
    room = model.max_seq_len - prompt
    if room < min(tokens, 1):
        raise UserError(
            f"the sequence is full: the prompt has {prompt:,} tokens, and the model's learned "
            f"positions end at {model.max_seq_len:,}: shorten it"
        )
    return min(tokens, room)


write = partial(print, end="", flush=True)


def write_tokens(stream, tokenizer):
    """Write the text of the drawn tokens as they come.

    A character that several tokens make up is written with the last of them.  Returns how many
    tokens were drawn, and whether the last one is the end of the text.
    """
    end = tokenizer.token_to_id(END_OF_TEXT)
    count = 0
    decoder = DecodeStream(skip_special_tokens=False)
    waiting = []  # tokens that end within a character
    for token in map(int, stream):
        count += 1
        if token == end:
            return count, True
        waiting.append(token)
        if text := decoder.step(tokenizer, token):
            write(text)
            waiting = []
    write(tokenizer.decode(waiting, skip_special_tokens=False))
    return count, False


def go_on(args):
    """Print the prompt and what follows, and how fast that was."""
    import torch  # here, so that --help does not wait for it

    from attention.pattern import whole
    from generation.sampling import check_sampling
    from machine.device import device_name, resolve_device
    from training.weights import load_model, load_tokenizer

    with checked_options():
        whole("--tokens", args.tokens)
        whole("--top-k", args.top_k)
        check_sampling(args.temperature, None, args.top_p)
        if not -(2**63) <= args.seed < 2**64:
            raise ValueError(f"--seed must fit into 64 bits, got {args.seed}")
        device = resolve_device(args.device)
    prompt = read_prompt(args.prompt)
    model = load_model(args.weights, device)
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise UserError(f"{args.weights}: not all weights are finite: the training diverged")
    tokenizer = load_tokenizer(args.weights, len(model.word_embeddings.weight))
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    if max(ids, default=0) >= len(model.word_embeddings.weight):
        words = "the tokenizer beside it has tokens that the model does not know"
        raise UserError(f"{args.weights}: {words}: it is not that of the training data")
    room = room_for(model, len(ids), args.tokens)
    top_k = args.top_k or None
    top_p = args.top_p if args.top_p < 1 else None
    generator = torch.Generator(device).manual_seed(args.seed)
    stream = model.stream([ids], room, args.temperature, top_k, top_p, generator)

    started = time.perf_counter()
    write(prompt)
    try:
        count, ended = write_tokens(stream, tokenizer)
    finally:
        write("\n")
    seconds = time.perf_counter() - started
    say(f"{counted(count, 'token')}, {count / seconds:,.1f} tokens/s on {device_name(device)}")
    if ended:
        say("stopped: the model ended the text")
    elif count < args.tokens:
        say(f"stopped: the sequence is full, learned positions end at {model.max_seq_len:,}")


def story(args):
    """``go_on``; where memory runs out one line says so."""
    try:
        return go_on(args)
    except RuntimeError as error:
        from machine.device import is_out_of_memory

        if "debug" in args or not is_out_of_memory(error):
            raise
        say(f"error: out of memory on {args.device}: fewer --tokens need less")
        return FAILED


def main(argv=None):
    """The command line; returns the exit code."""
    return run_command(build_parser(), story, argv)


if __name__ == "__main__":
    sys.exit(main())
