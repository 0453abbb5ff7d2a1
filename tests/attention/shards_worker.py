"""What torchrun starts in test_shards.py: ``torchrun ... shards_worker.py SEED TRIALS DEVICE``.

Every rank draws the same sequences, computes its shard, and compares it with textbook attention of
the whole, which each has too.  The first rank prints what was found, as JSON.
"""

import json
import os
import random
import sys
from functools import partial

import torch
from torch import distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from attention.choose import window_attention
from attention.exchange import Shards, traffic
from attention.pattern import Pattern
from attention.shards import shard_attention, whole_rows
from estimates.shards import exchanged_bytes

GROUPS = {"full heads": 0, "dilated": 0, "staggered": 0, "sinks": 0, "odd shard": 0}


def draw_case(draw, ranks):
    """A pattern for some heads, and the shape of a shard that can hold its window and sinks."""
    length = draw.choice([1, 2, 3, 5, 8, 13, 24, 37])
    heads = draw.randint(1, 5)
    dilation = draw.choice([0, 0, 1, 2, 3, 5, 7, 40])
    pattern = Pattern(
        draw.randint(0, length - 1),
        dilation,
        draw.choice([0, 0, draw.randint(0, length)]),
        draw.randint(0, heads),
        stagger=dilation > 1 and draw.random() < 0.5,
    )
    phase = draw.randrange(dilation) if pattern.stagger else 0
    return pattern._replace(first_phase=phase), draw.randint(1, 2), length, heads


def out_and_gradients(attend, qkv, upstream):
    leaves = [x.detach().clone().requires_grad_() for x in qkv]
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def compare(draw, shards, device, dtype, largest):
    """One case: None, or what differs, in words."""
    pattern, batch, length, heads = draw_case(draw, shards.size)
    shape = 4, batch, length * shards.size, heads, draw.choice([2, 8])
    generator = torch.Generator().manual_seed(draw.getrandbits(32))
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
    *qkv, upstream = numbers

    def dense(q, k, v):
        return window_attention(q, k, v, evaluation="dense", **pattern._asdict())

    def over_shards(q, k, v):
        return shard_attention(q, k, v, shards, **pattern._asdict())

    mine = slice(shards.rank * length, (shards.rank + 1) * length)
    expected = [x[:, mine] for x in out_and_gradients(dense, qkv, upstream)]
    own = [x[:, mine].to(device, dtype) for x in numbers]
    found = out_and_gradients(over_shards, own[:3], own[3])
    error = max((x.cpu() - y).abs().max().item() for x, y in zip(found, expected, strict=True))
    for name, has in {
        "full heads": pattern.full_heads,
        "dilated": pattern.dilation > 1,
        "staggered": pattern.stagger,
        "sinks": pattern.sink_tokens,
        "odd shard": length % 2,
    }.items():
        GROUPS[name] += bool(has)
    if not error <= largest:
        return f"rank {shards.rank} of {shards.size}: {pattern}, {tuple(shape[1:])}: {error:.1e}"
    return None


def sent_bytes(shards, device):
    """Bytes sent in a step of attention, (counted, by the formula): three patterns, two dtypes."""
    found = []
    for pattern in (Pattern(3, 0, 2, 1), Pattern(3, 0), Pattern(2, 3)):
        for dtype in (torch.float32, torch.bfloat16):
            traffic.clear()
            q, k, v, upstream = torch.randn(4, 2, 9, 4, 8, device=device, dtype=dtype)
            attend = partial(shard_attention, shards=shards, **pattern._asdict())
            out_and_gradients(attend, (q, k, v), upstream)
            about = 9 * shards.size, shards.size, pattern, 4, 8, dtype.itemsize
            expected = exchanged_bytes(*about, rank=shards.rank, batch=2)
            found.append([dict(+traffic), {name: n for name, n in expected.items() if n}])
    return found


def refuses_second_derivatives(shards, device):
    q = torch.randn(1, 8, 2, 8, device=device, requires_grad=True)
    out = shard_attention(q, q, q, shards, 3, 0, full_heads=1)
    (gradient,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    try:
        gradient.sum().backward()
    except RuntimeError as error:
        return "once_differentiable" in str(error)
    return False


class Counted(TorchDispatchMode):
    operators = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operators += 1
        return function(*args, **(kwargs or {}))


def operators_of(shards, length, device):
    """How many operators attention with staggered heads takes, forward and back."""
    q, k, v, upstream = torch.randn(4, 1, length, 4, 8, device=device)
    attend = partial(shard_attention, shards=shards, window_size=3, dilation=4, stagger=True)
    with Counted() as counted:
        out_and_gradients(attend, (q, k, v), upstream)
    return counted.operators


def other_gpus_used():
    """The numbers of GPUs on which this process has a context, but of its own."""
    others = set(range(torch.cuda.device_count())) - {torch.cuda.current_device()}
    return [gpu for gpu in others if torch._C._cuda_hasPrimaryContext(gpu)]


def results_of(shards, draw, trials, device):
    """What this rank finds together with the others of ``shards``."""
    GROUPS.update(dict.fromkeys(GROUPS, 0))
    dtype, largest = (torch.float32, 1e-4) if device == "cuda" else (torch.float64, 1e-10)
    wrong = [compare(draw, shards, device, dtype, largest) for _ in range(trials)]
    rows = torch.arange(6.0).view(2, 3) + 10 * shards.rank
    return {
        "wrong": [text for text in wrong if text],
        "groups": dict(GROUPS),
        "bytes": sent_bytes(shards, device),
        "refuses": refuses_second_derivatives(shards, device),
        "rows": whole_rows(rows.to(device), shards).tolist(),
        "operators": [operators_of(shards, length, device) for length in (256, 512)],
        "other GPUs": other_gpus_used() if device == "cuda" else [],
    }


def main(seed, trials, device):
    on_cuda = device == "cuda"
    if on_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
    torch.set_num_threads(1)
    results = {}
    for size in range(2, dist.get_world_size() + 1):  # the first two ranks, the first three ...
        group = dist.new_group(range(size))
        if dist.get_rank() < size:
            draw = random.Random(int(seed))
            results[size] = results_of(Shards.of(group), draw, int(trials), device)
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, results)
    if dist.get_rank() == 0:
        print(json.dumps(every), flush=True)
    dist.barrier()
    os._exit(0)  # threads of gloo that still run at the end of the interpreter would abort it


if __name__ == "__main__":
    main(*sys.argv[1:])
