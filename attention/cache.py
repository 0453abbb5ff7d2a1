"""Attention of one new token to the stored keys and values of the tokens before it.

A step reads the keys that its pattern allows: with w window_size, d dilation and N sink_tokens
about w + i/d + N of them at position i, where full attention reads i.
Shapes: B batch, H heads, D head_dim, n keys of a part.
"""

import torch

from attention.kernels import ALL_KEYS, CHOICES, KERNELS
from attention.pattern import check_pattern, may_attend
from attention.split import split_kernels


def _product(one, other):
    """The matrix products (N, ., .), summed in float32 or more."""
    if one.dtype in (torch.float32, torch.float64):
        return torch.bmm(one, other)
    if one.is_cuda:
        return torch.bmm(one, other, out_dtype=torch.float32)
    return torch.bmm(one.float(), other.float())


def _by_products(q, parts, scale):
    """One softmax over the keys of all parts: q (B, H, 1, D) -> (B, H, 1, D), float32 or more.

    parts: (k, v, kept), k and v (B, H, n, D) whose B and H are one dimension to PyTorch, so that
    nothing is copied; kept (n,) says which of the keys count, None all.
    """
    B, H = q.shape[:2]
    scores = []
    for k, _, kept in parts:
        score = _product(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2))  # (B * H, 1, n)
        score = score * scale
        scores.append(score if kept is None else score.masked_fill(~kept, float("-inf")))
    weights = torch.cat(scores, dim=2).softmax(dim=2).to(q.dtype)
    weights = weights.split([k.shape[2] for k, *_ in parts], dim=2)
    out = sum(_product(p, v.flatten(0, 1)) for p, (_, v, _) in zip(weights, parts, strict=True))
    return out.unflatten(0, (B, H))


def _by_kernel(kernel, q, parts, scale):
    """The same from the kernel's output and log-sum-exp of every part: a softmax over those."""
    q = q.contiguous()
    outs, lses = [], []
    for k, v, _ in parts:
        out, lse = kernel.forward(q, k, v, ALL_KEYS, scale)
        outs.append(out)
        lses.append(lse)
    if len(outs) == 1:
        return outs[0]
    weights = torch.cat(lses, dim=2).softmax(dim=2).unsqueeze(2)  # (B, H, 1, parts)
    return (weights @ torch.cat(outs, dim=2).to(weights.dtype)).to(q.dtype)


def decode_kernel(device, dtype, head_dim):
    """The name in ``KERNELS`` of the kernel that serves a step here; None: products serve it.

    The near kernel of split attention, but products in float32 on CUDA.  On 2 CPU cores in float32
    it took 0.75 of the products' time at 4,096 tokens (B8 H4 D32), 1.13 at 16,384.  On an H200 in
    bfloat16 cuDNN was the fastest in a CUDA graph, 0.71 to 0.96 of FlashAttention's time, but it
    makes a new plan for every number of keys, and that grows as the text does: 46 to 52 ms a call.
    """
    if (device.type, dtype) not in CHOICES or (device.type, dtype) == ("cuda", torch.float32):
        return None
    kernels = split_kernels(device, dtype, head_dim)
    return None if kernels is None else kernels[0]


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
    """

    def __init__(self, shape, length, pattern, dtype=torch.float32, device="cpu"):
        """shape: (B, H, D); pattern: (w, d, N)."""
        check_pattern(*pattern)
        window_size, dilation, sinks = pattern
        if dilation == 1 or window_size + 1 >= length:
            window_size, dilation, sinks = length - 1, 0, 0
        elif window_size + dilation >= length:
            dilation = 0
        self.length, self.filled = length, 0
        self.window_size, self.dilation, self.sinks = window_size, dilation, min(sinks, length)
        B, H, D = shape
        class_length = -(-length // dilation) if dilation else 0

        def zeros(*places):  # a masked sink's weight is 0, which takes a finite value
            return torch.zeros((2, B, H, *places, D), dtype=dtype, device=device)

        self.near = zeros(window_size + 1)
        self.far = zeros(dilation, class_length)
        self.sink = zeros(self.sinks)

    def write(self, k, v):
        """Take the keys and values (B, S, H, D) of the first S tokens, or of the one that follows.

        Raises ValueError where they do not fit, and for more than one token after the first.
        """
        first, tokens = self.filled, k.shape[1]
        if first + tokens > self.length:
            raise ValueError(f"{first + tokens} tokens do not fit into a cache of {self.length}")
        if tokens > 1 and first:
            raise ValueError(f"after the first tokens one follows at a time, not {tokens}")
        self.filled += tokens
        new = torch.stack([k, v]).transpose(2, 3)  # (2, B, H, S, D)
        if tokens == 1:
            self._write_one(new.squeeze(3), first)
            return
        ring, slots = self.window_size + 1, torch.arange(tokens, device=k.device)
        self.near[:, :, :, slots[-ring:] % ring] = new[:, :, :, -ring:]
        if self.dilation:
            self.far[:, :, :, slots % self.dilation, slots // self.dilation] = new
        self.sink[:, :, :, :tokens] = new[:, :, :, : self.sinks]

    def _write_one(self, new, slot):
        """Take new (2, B, H, D) into one slot."""
        self.near[:, :, :, slot % (self.window_size + 1)] = new
        if self.dilation:
            self.far[:, :, :, slot % self.dilation, slot // self.dilation] = new
        if slot < self.sinks:
            self.sink[:, :, :, slot] = new

    def parts(self):
        """What the last token attends to: (k, v, kept) for near, far and sink keys, where any are.

        k and v (B, H, n, D); kept (n,) for the sinks, some of which may be near or far keys, or
        None for all.
        """
        w, d, slot = self.window_size, self.dilation, self.filled - 1
        parts = [(*self.near[:, :, :, : self.filled], None)]
        if d and slot >= w + d:
            parts.append((*self.far[:, :, :, (slot - w) % d, : (slot - w) // d], None))
        if self.sinks and slot > w:
            key = torch.arange(self.sinks, device=self.sink.device)
            kept = may_attend(slot, key, w, d, self.sinks) & ~may_attend(slot, key, w, d)
            parts.append((*self.sink, kept))
        return parts

    def attend(self, q):
        """The last token's attention, q (B, 1, H, D) -> (B, 1, H, D)."""
        parts, head_dim = self.parts(), q.shape[-1]
        masked = any(kept is not None for *_, kept in parts)
        q = q.transpose(1, 2)  # (B, H, 1, D)
        with torch.autocast(q.device.type, enabled=False):
            kernel = None if masked else decode_kernel(q.device, q.dtype, head_dim)
            if kernel is None:
                out = _by_products(q, parts, head_dim**-0.5).to(q.dtype)
            else:
                out = _by_kernel(KERNELS[kernel], q, parts, head_dim**-0.5)
        return out.transpose(1, 2)
