"""Attention of one new token to the stored keys and values of the tokens before it.

A step reads the keys that each head may attend to: with w window_size, d dilation and N
sink_tokens about w + i/d + N of them at position i, where a full head reads i.
Shapes: B batch, H heads, D head_dim, n keys of a part.
"""

import torch

from attention.kernels import ALL_KEYS, CHOICES, KERNELS
from attention.pattern import FULL_HEAD, is_sink_alone, whole
from attention.split import all_heads, split_kernels


def _product(one, other):
    """The matrix products (N, ., .), summed in float32 or more."""
    if one.dtype in (torch.float32, torch.float64):
        return torch.bmm(one, other)
    if one.is_cuda:
        return torch.bmm(one, other, out_dtype=torch.float32)
    return torch.bmm(one.float(), other.float())


def _by_products(q, parts, scale):
    """One softmax over the keys of all parts: q (B, H, n, D) -> (B, H, n, D), float32 or more.

    parts: (k, v, kept), k and v (B, H, n, D) whose B and H are one dimension to PyTorch, so that
    nothing is copied; kept (n,) says which of the keys count, None all.
    """
    B, H = q.shape[:2]
    scores = []
    for k, _, kept in parts:
        score = _product(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2))  # (B * H, ., n)
        score = score * scale
        scores.append(score if kept is None else score.masked_fill(~kept, float("-inf")))
    weights = torch.cat(scores, dim=2).softmax(dim=2).to(q.dtype)
    weights = weights.split([k.shape[2] for k, *_ in parts], dim=2)
    out = sum(_product(p, v.flatten(0, 1)) for p, (_, v, _) in zip(weights, parts, strict=True))
    return out.unflatten(0, (B, H))


def _by_kernel(kernel, q, parts, scale):
    """The same by a kernel: each part's output is weighted by the softmax of the log-sum-exps."""
    q = q.contiguous()
    outs, lses = [], []
    for k, v, _ in parts:
        out, lse = kernel.forward(q, k, v, ALL_KEYS, scale)
        outs.append(out)
        lses.append(lse)
    if len(outs) == 1:
        return outs[0]
    weights = torch.stack(lses, dim=3).softmax(dim=3).unsqueeze(3)  # (B, H, n, 1, parts)
    return (weights @ torch.stack(outs, dim=3).to(weights.dtype)).squeeze(3).to(q.dtype)


def decode_kernel(device, dtype, head_dim):
    """The name in ``KERNELS`` of the kernel that serves a step here; None: products serve it.

    The near kernel of split attention, but products in float32 on CUDA.  On 2 CPU cores in float32
    the kernel took 0.75 of the products' time at 4,096 tokens (B8 H4 D32), 1.13 at 16,384.  On an
    H200 in bfloat16 cuDNN was the fastest inside a CUDA graph, 0.71 to 0.96 of FlashAttention's
    time, but it makes a new plan for every number of keys, and each token adds one: 46 to 52 ms a
    call.
    """
    if (device.type, dtype) not in CHOICES or (device.type, dtype) == ("cuda", torch.float32):
        return None
    kernels = split_kernels(device, dtype, head_dim)
    return None if kernels is None else kernels[0]


def keeps_together(heads, sharing):
    """Does a slice of query heads hold all or none of every ``sharing`` that share a key head?"""
    return heads.step == 1 and heads.start % sharing == heads.stop % sharing == 0


class HeadCache:
    """Keys and values of up to ``length`` tokens for like heads, stored the way a step reads them.

    Slot i holds the i-th token.  A step at slot i reads two blocks of memory, both views:

    * near: a ring of w + 1 places, where slot j takes place j % (w + 1).  It holds just the window;
      the softmax does not ask for the order of its keys.
    * far: every d-th slot up to i - w - d, or i - w - phase where there is a phase.  All are of one
      residue class modulo d, and the store (B, H, d, length / d, D) has the slots of a class side
      by side.  As a strided slice of the sequence the same keys took 2 to 3 times as long on a CPU,
      for memory is read in pieces longer than a key.

    The sinks have a store of their own.  For full heads the ring is as long as the sequence.
    """

    def __init__(self, shape, length, head, dtype, device):
        """shape: (B, H, D); head: the ``HeadPattern``, in the fewest numbers."""
        B, H, D = shape
        self.head = head
        self.ring = length if head == FULL_HEAD else head.window_size + 1
        self.dilation = head.dilation if head.dilation > 1 else 0
        class_length = -(-length // self.dilation) if self.dilation else 0

        def zeros(*places):  # not empty: a masked sink's weight of 0 wants a finite value
            return torch.zeros((2, B, H, *places, D), dtype=dtype, device=device)

        self.near = zeros(self.ring)
        self.far = zeros(self.dilation, class_length)
        self.sink = zeros(head.sink_tokens)

    def write(self, new, first):
        """Take the keys and values new (2, B, H, S, D) of the slots from ``first`` on."""
        tokens = new.shape[3]
        if tokens == 1:
            self._write_one(new.squeeze(3), first)
            return
        slots = torch.arange(tokens, device=new.device)
        self.near[:, :, :, slots[-self.ring :] % self.ring] = new[:, :, :, -self.ring :]
        if self.dilation:
            self.far[:, :, :, slots % self.dilation, slots // self.dilation] = new
        self.sink[:, :, :, :tokens] = new[:, :, :, : self.head.sink_tokens]

    def _write_one(self, new, slot):
        """Take new (2, B, H, D) into one slot."""
        self.near[:, :, :, slot % self.ring] = new
        if self.dilation:
            self.far[:, :, :, slot % self.dilation, slot // self.dilation] = new
        if slot < self.head.sink_tokens:
            self.sink[:, :, :, slot] = new

    def parts(self, slot):
        """What the token in ``slot`` attends to: (k, v, kept) for near, far and sink keys.

        k and v (B, H, n, D).  kept: None, or which of n sinks are neither near nor far keys, (n,).
        """
        parts = [(*self.near[:, :, :, : slot + 1], None)]
        last_far = slot - self.head.nearest_far()
        if self.dilation and last_far >= 0:
            # no divmod: torch.compile knows none for slots that vary
            place, residue = last_far // self.dilation, last_far % self.dilation
            parts.append((*self.far[:, :, :, residue, : place + 1], None))
        if self.head.sink_tokens and slot > self.head.window_size:
            key = torch.arange(self.head.sink_tokens, device=self.sink.device)
            parts.append((*self.sink, is_sink_alone(slot, key, self.head)))
        return parts


class KeyValueCache:
    """Keys and values of up to ``length`` tokens of one layer, like heads in one ``HeadCache``.

    So full heads keep all tokens, and heads with a bare window no more than w + 1.
    """

    def __init__(self, shape, length, pattern, dtype=torch.float32, device="cpu", n_heads=None):
        """shape: (B, H, D) of keys and values; pattern: a ``Pattern``.

        n_heads: how many heads the queries have, a multiple of H, where they are more.
        """
        B, H, D = self.shape = shape
        self.dtype, self.device = dtype, torch.empty(0, device=device).device
        self.n_heads = H if n_heads is None else whole("n_heads", n_heads, 1)
        pattern = pattern.checked(self.n_heads)
        if self.n_heads % H:
            raise ValueError(f"{H} heads of keys do not divide {self.n_heads} of queries")
        self.length, self.filled = whole("length", length), 0
        like_heads = pattern.like_heads(self.length, self.n_heads)
        sharing = self.n_heads // H  # query heads that share a key head
        together = all(keeps_together(heads, sharing) for _, heads in like_heads)
        # where heads that share keys see different ones of them, each stores its own
        self.repeats = 1 if together else sharing
        sharing //= self.repeats
        self.groups = []  # (HeadCache, heads of keys, heads of queries)
        for head, heads in like_heads:
            of_keys = slice(heads.start // sharing, heads.stop // sharing, heads.step)
            count = len(range(self.n_heads // sharing)[of_keys])
            cache = HeadCache((B, count, D), self.length, head, dtype, device)
            self.groups.append((cache, of_keys, heads))

    def stores(self):
        """The tensors that hold keys and values."""
        return [x for cache, *_ in self.groups for x in (cache.near, cache.far, cache.sink)]

    def _check(self, name, x, tokens, heads):
        """ValueError unless x is (B, tokens, heads, D) of the cache's dtype and device."""
        B, _, D = self.shape
        found = tuple(x.shape), x.dtype, x.device
        wanted = (B, tokens, heads, D), self.dtype, self.device
        if found != wanted:
            one, other = ("{} {} on {}".format(*about) for about in (wanted, found))
            raise ValueError(f"for this cache {name} must be {one}, got {other}")

    def write(self, k, v):
        """Take the keys and values (B, S, H, D) of the first S tokens, or of the one that follows.

        Raises ValueError where they do not fit, and for more than one token after the first.
        """
        first, tokens = self.filled, k.shape[1]
        if first + tokens > self.length:
            raise ValueError(f"{first + tokens} tokens do not fit into a cache of {self.length}")
        if tokens > 1 and first:
            raise ValueError(f"after the first tokens one follows at a time, not {tokens}")
        for name, x in (("k", k), ("v", v)):
            self._check(name, x, tokens, self.shape[1])
        self.filled += tokens
        new = torch.stack([k, v]).transpose(2, 3)  # (2, B, H, S, D)
        if self.repeats > 1:
            new = new.repeat_interleave(self.repeats, dim=2)
        for cache, of_keys, _ in self.groups:
            cache.write(new[:, :, of_keys], first)

    def attend(self, q):
        """The last token's attention, q (B, 1, H, D) -> (B, 1, H, D).

        Raises ValueError before any token, and for another q.
        """
        if self.filled == 0:
            raise ValueError("the cache is empty: write the keys and values of a token first")
        self._check("q", q, 1, self.n_heads)
        slot, found = self.filled - 1, []
        with torch.autocast(q.device.type, enabled=False):
            for cache, _, heads in self.groups:
                found.append(attend_to_parts(q[:, :, heads], cache.parts(slot)))
        return all_heads(found, self.groups)


def attend_to_parts(q, parts):
    """One softmax over the keys of all parts, q (B, 1, H, D) -> (B, 1, H, D)."""
    key_heads, head_dim = parts[0][0].shape[1], q.shape[3]
    rows = q.squeeze(1).unflatten(1, (key_heads, -1))  # (B, H of keys, queries that share it, D)
    masked = any(kept is not None for *_, kept in parts)
    kernel = None if masked else decode_kernel(q.device, q.dtype, head_dim)
    if kernel is None:
        out = _by_products(rows, parts, head_dim**-0.5).to(q.dtype)
    else:
        out = _by_kernel(KERNELS[kernel], rows, parts, head_dim**-0.5)
    return out.flatten(1, 2).unsqueeze(1)
