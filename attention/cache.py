"""Attention of one new token to the stored keys and values of the tokens before it.

This file knows tensors and no models.  A step reads the keys that its pattern allows: with the
letters of the pattern (B batch, H heads, D head_dim, w window_size, d dilation, N
sink_tokens) about w + i/d + N of them at position i, where full attention reads i.  (Where there
are sinks, or rows of different lengths in a batch, it reads a few that are masked then.)
"""

import copy
import functools

import torch

from attention.pattern import check_pattern, may_attend


# --- how one query attends to a block of keys ----------------------------------------------------
#
# PyTorch's attention kernels: q (B, H, 1, D) and k, v (B, H, n, D) -> out, log-sum-exp (B, H, 1).
def _cpu(q, k, v, scale):
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)


def _flash(q, k, v, scale):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (N, n, H, D)
    lengths = q.shape[1], k.shape[1]
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, None, None, *lengths, 0.0, False, False, scale=scale
    )
    return out.transpose(1, 2), lse


def _cudnn(q, k, v, scale):
    operator = torch.ops.aten._scaled_dot_product_cudnn_attention
    out, lse, *_ = operator(q, k, v, None, True, 0.0, False, False, scale=scale)
    return out, lse.squeeze(-1)


def _efficient(q, k, v, scale):
    operator = torch.ops.aten._scaled_dot_product_efficient_attention
    out, lse, *_ = operator(q, k, v, None, True, scale=scale)
    return out, lse[:, :, :1]  # padded


PRODUCTS = "products"  # no kernel: two matrix products around a softmax over all keys
# cudnn and efficient are for the benchmark alone, see CHOICES.
KERNELS = {"cpu": _cpu, "flash": _flash, "cudnn": _cudnn, "efficient": _efficient}
# The first that works is taken, and products where none does.  On 2 CPU cores in float32 the kernel
# took 0.75 of the products' time at 4,096 tokens (B8 H4 D32), 1.13 at 16,384.  On an H200 in
# bfloat16 cuDNN was the fastest in a CUDA graph, 0.71 to 0.96 of FlashAttention's time, but it
# makes a new plan for every number of keys, and that grows as the text does: 46 to 52 ms a call.
CHOICES = {
    ("cpu", torch.float64): ["cpu"],
    ("cpu", torch.float32): ["cpu"],
    ("cpu", torch.bfloat16): ["cpu"],
    ("cpu", torch.float16): ["cpu"],
    ("cuda", torch.bfloat16): ["flash"],
    ("cuda", torch.float16): ["flash"],
}


@functools.cache
def decode_kernel(device, dtype, head_dim):
    """The name of the kernel that serves a step here: of ``KERNELS``, or ``PRODUCTS``.

    PyTorch's underscored operators may change with its version and depend on the device: each is
    tried on a small example first.
    """
    for name in CHOICES.get((device.type, dtype), []):
        generator = torch.Generator().manual_seed(0)
        numbers = torch.randn((3, 2, 2, 40, head_dim), generator=generator, device="cpu")
        numbers = numbers.to(device, dtype)
        q, *parts = numbers[0, :, :, :1], numbers[1:, :, :, :7], numbers[1:, :, :, 7:]
        try:
            out = _by_kernel(KERNELS[name], q, parts, head_dim**-0.5)
        except (RuntimeError, TypeError, AttributeError, NotImplementedError):
            continue
        expected = _by_products(q.double(), [(*part.double(), None) for part in parts], q.shape[-1])
        if (out - expected).norm() <= 10 * torch.finfo(dtype).eps * expected.norm():
            return name
    return PRODUCTS


def _product(one, other):
    """The matrix products (N, ., .), summed in float32 or more."""
    if one.dtype in (torch.float32, torch.float64):
        return torch.bmm(one, other)
    if one.is_cuda:
        return torch.bmm(one, other, out_dtype=torch.float32)
    return torch.bmm(one.float(), other.float())


def _by_products(q, parts, head_dim):
    """One softmax over the keys of all parts: q (B, H, 1, D) -> (B, H, 1, D), float32 or more.

    parts: (k, v, kept), k and v (B, H, n, D) whose B and H are one dimension to PyTorch, so that
    nothing is copied; kept (B, 1, n) or (1, 1, n) says which of the keys count, None all.
    """
    B, H = q.shape[:2]
    scores = []
    for k, _, kept in parts:
        score = _product(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)).unflatten(0, (B, H))
        score = score.squeeze(2) * head_dim**-0.5  # (B, H, n)
        scores.append(score if kept is None else score.masked_fill(~kept, float("-inf")))
    weights = torch.cat(scores, dim=2).softmax(dim=2).flatten(0, 1).unsqueeze(1).to(q.dtype)
    weights = weights.split([k.shape[2] for k, *_ in parts], dim=2)
    out = sum(_product(p, v.flatten(0, 1)) for p, (_, v, _) in zip(weights, parts, strict=True))
    return out.unflatten(0, (B, H))


def _by_kernel(kernel, q, parts, scale):
    """The same from the kernel's output and log-sum-exp of every part: a softmax over those.

    parts: (k, v), (B, H, n, D) each.
    """
    q = q.contiguous()
    outs, lses = zip(*(kernel(q, k, v, scale) for k, v in parts), strict=True)
    if len(outs) == 1:
        return outs[0]
    weights = torch.cat(lses, dim=2).softmax(dim=2).unsqueeze(2)  # (B, H, 1, blocks)
    return (weights @ torch.cat(outs, dim=2).to(weights.dtype)).to(q.dtype)


# --- the stored keys and values ------------------------------------------------------------------
class KeyValueCache:
    """Keys and values of up to ``length`` tokens of one layer, stored the way a step reads them.

    Slot i holds the i-th token.  A step at slot i reads two blocks of memory, both views:

    * near: a ring of w + 1 places, where slot j takes place j % (w + 1).  It holds just the window;
      the softmax does not ask for the order of its keys.
    * far: the slots [(i - w) % d : i - w : d].  All are of one residue class modulo d, and a class
      lies in one piece, (B, H, d, length / d, D).  Taken as a strided slice of the sequence, the
      same keys took 2 to 3 times as long on a CPU: memory is read in longer pieces than a key.

    The sinks have a store of their own.  With full causal attention the ring is as long as the
    sequence.

    starts: for rows of different lengths, the slot of every row's first token: rows end together,
    and the slots before their starts are masked.
    """

    def __init__(self, shape, length, pattern, starts=None, dtype=torch.float32, device="cpu"):
        """shape: (B, H, D); pattern: (w, d, N)."""
        check_pattern(*pattern)
        window_size, dilation, sinks = pattern
        self.length = length
        if dilation == 1 or window_size + 1 >= length:
            window_size, dilation, sinks = length - 1, 0, 0
        elif window_size + dilation >= length:
            dilation = 0
        self.window_size, self.dilation, self.sinks = window_size, dilation, min(sinks, length)
        B, H, D = shape
        rows = -(-length // dilation) if dilation else 0

        def zeros(*places):  # a masked slot's weight is 0, which takes a finite value
            return torch.zeros((2, B, H, *places, D), dtype=dtype, device=device)

        self.near, self.sink = zeros(window_size + 1), zeros(self.sinks)
        self.far = zeros(dilation, rows)
        self.filled, self.origin = 0, 0
        self.starts = None
        if starts is not None and any(starts):
            self.starts = list(starts)
            self._starts = torch.tensor(self.starts, device=device)[:, None, None]  # (B, 1, 1)

    def rows(self, first, last):
        """The rows first .. last - 1, which start at one slot, as a cache over the same memory.

        For their prompt, which goes to their slots.
        """
        part = copy.copy(self)
        for name in ("near", "far", "sink"):
            setattr(part, name, getattr(self, name)[:, first:last])
        part.filled = part.origin = self.starts[first] if self.starts else 0
        part.starts = None
        return part

    def write(self, k, v):
        """Take the keys and values (B, S, H, D) of the first S tokens, or of the one that follows.

        Returns whether they are the first.  Raises ValueError where they do not fit, and for more
        than one token after the first.
        """
        first, tokens = self.filled, k.shape[1]
        if first + tokens > self.length:
            raise ValueError(f"{first + tokens} tokens do not fit into a cache of {self.length}")
        if tokens > 1 and first != self.origin:
            raise ValueError(f"after the first tokens one follows at a time, not {tokens}")
        new = torch.stack([k, v]).transpose(2, 3)  # (2, B, H, S, D)
        self.filled += tokens
        if tokens == 1:
            self._write_one(new.squeeze(3), first)
            return first == self.origin
        ring, slots = self.window_size + 1, torch.arange(first, self.filled, device=k.device)
        self.near[:, :, :, slots[-ring:] % ring] = new[:, :, :, -ring:]
        if self.dilation:
            self.far[:, :, :, slots % self.dilation, slots // self.dilation] = new
        self.sink[:, :, :, :tokens] = new[:, :, :, : self.sinks]
        return True

    def _write_one(self, new, slot):
        """Take new (2, B, H, D) into one slot."""
        self.near[:, :, :, slot % (self.window_size + 1)] = new
        if self.dilation:
            self.far[:, :, :, slot % self.dilation, slot // self.dilation] = new
        if self.starts is None and slot - self.origin < self.sinks:
            self.sink[:, :, :, slot - self.origin] = new
        for row, start in enumerate(self.starts or ()):
            if slot - start < self.sinks:
                self.sink[:, row, :, slot - start] = new[:, row]

    def parts(self):
        """What the last token attends to: (k, v, kept) for near, far and sink keys, where any are.

        k and v (B, H, n, D); kept (B, 1, n) or (1, 1, n), or None for all.
        """
        w, d, slot = self.window_size, self.dilation, self.filled - 1
        near = self.near[:, :, :, : self.filled]
        places = functools.partial(torch.arange, device=near.device)
        kept = self._begun(lambda: slot - (slot - places(near.shape[3])) % (w + 1))
        parts = [(*near, kept)]
        if d and slot >= w + d:
            first = (slot - w) % d
            far = self.far[:, :, :, first, : (slot - w) // d]
            kept = self._begun(lambda: first + d * places(far.shape[3]))
            parts.append((*far, kept))
        if self.sinks and slot > w:
            position = slot if self.starts is None else slot - self._starts
            key = places(self.sinks).expand(1, 1, -1)
            kept = may_attend(position, key, w, d, self.sinks) & ~may_attend(position, key, w, d)
            parts.append((*self.sink, kept))
        return parts

    def _begun(self, slots):
        """(B, 1, n): have the rows begun at the slots (n,) that ``slots()`` gives?  None: all."""
        return None if self.starts is None else slots() >= self._starts

    def attend(self, q, kernel=None):
        """The last token's attention, q (B, 1, H, D) -> (B, 1, H, D).

        kernel: a name of ``KERNELS``, or ``PRODUCTS``, which alone knows masks and takes another's
        place where there are any; None: see ``decode_kernel``.
        """
        head_dim = q.shape[-1]
        parts = self.parts()
        masked = any(kept is not None for *_, kept in parts)
        one = q.transpose(1, 2)  # (B, H, 1, D)
        with torch.autocast(q.device.type, enabled=False):
            if kernel is None and not masked:
                kernel = decode_kernel(q.device, q.dtype, head_dim)
            if masked or kernel == PRODUCTS:
                out = _by_products(one, parts, head_dim).to(q.dtype)
            else:
                blocks = [(k, v) for k, v, _ in parts]
                out = _by_kernel(KERNELS[kernel], one, blocks, head_dim**-0.5)
        return out.transpose(1, 2)
