"""Copies of a file as damage or a careless hand leaves them; all chance is in the generator."""

import copy
import io
import json
import math

import numpy as np
import torch

# in place of a value; 2**40 fits into 64 bits and no memory
VALUES = ("text", "", None, [], {}, [[1, "a"]], {"a": [None]}, True, 0, -1, 0.5, 2**40, 10**30)
VALUES += (math.nan, math.inf, -math.inf, 1e300)


def damaged_bytes(rng, content, foreign):
    """A file's bytes, damaged: ``(name of the damage, bytes)``.

    foreign: the contents of files of other kinds.
    """
    start, stop = sorted(map(int, rng.integers(len(content) + 1, size=2)))
    flipped = bytearray(content)
    for place in rng.integers(len(content), size=rng.integers(1, 5)):
        flipped[place] ^= 1 << rng.integers(8)
    kinds = {
        "truncated": content[:start],
        "empty": b"",
        "flipped": bytes(flipped),
        "zeros": content[:start] + bytes(stop - start) + content[stop:],
        "repeated": content[:stop] + content[start:],
        "swapped": foreign[rng.integers(len(foreign))],
        "random": rng.bytes(int(rng.integers(1, 3000))),
    }
    name = str(rng.choice(list(kinds)))
    return name, kinds[name]


def places_of(value, path=()):
    """The paths of all values inside of JSON-like content."""
    children = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        children = list(enumerate(value))[:6]
    places = [path] if path else []
    for key, child in children:
        places += places_of(child, (*path, key))
    return places


def change_value(rng, content):
    """JSON-like content with one value gone or another one: ``(what was changed, content)``."""
    content = copy.deepcopy(content)
    places = places_of(content)
    # as often near the root, where the few values are that hold the others
    depth = rng.integers(1, max(map(len, places)) + 1)
    places = [place for place in places if len(place) <= depth]
    *path, last = places[rng.integers(len(places))]
    table = content
    for key in path:
        table = table[key]
    old = table[last]
    if rng.random() < 0.25:
        del table[last]
        return f"{[*path, last]} gone", content
    others = [value for value in VALUES if value is not old]
    if isinstance(old, list):
        others += 2 * [old[:-1], old + old, old[::-1]]
    if isinstance(old, int | float):
        others += 2 * [-old, old + 1, str(old), old * 1000]
    table[last] = others[rng.integers(len(others))]
    return f"{[*path, last]}: {str(table[last])[:60]}", content


def change_json(rng, content):
    """The same of a JSON file's bytes."""
    what, changed = change_value(rng, json.loads(content))
    return what, json.dumps(changed).encode()


def change_array(rng, array):
    """An array of another type or shape: ``(what was changed, array)``."""
    array = np.array(array)
    changes = {
        "object": lambda: np.array([{"a": 1}, None], dtype=object),
        "text": lambda: array.astype(str),
        "bytes": lambda: array.astype("S8"),
        "complex": lambda: np.full(array.shape, 1 + 1j),
        "float64": lambda: np.full(array.shape, 0.5),
        "int8": lambda: np.full(array.shape, -1, np.int8),
        "nan": lambda: np.full(array.shape, np.nan),
        "huge": lambda: np.full(array.shape, 2**62),
        "negative": lambda: np.full(array.shape, -3),
        "rank more": lambda: array[None],
        "rank less": lambda: array.reshape(-1)[:1].reshape(()),
        "fewer rows": lambda: array[: len(array) // 2],
        "no rows": lambda: array[:0],
        "fewer columns": lambda: array[..., : array.shape[-1] // 2],
        "more rows": lambda: np.concatenate([array, array]),
        "fortran": lambda: np.asfortranarray(array),
        "swapped bytes": lambda: array.astype(array.dtype.newbyteorder()),
    }
    while True:  # not all go with texts and scalars
        name = str(rng.choice(list(changes)))
        try:
            return name, changes[name]()
        except (TypeError, ValueError, IndexError):
            continue


def change_npy(rng, content):
    """The same of a .npy file's bytes."""
    what, array = change_array(rng, np.load(io.BytesIO(content)))
    changed = io.BytesIO()
    np.save(changed, array, allow_pickle=True)
    return what, changed.getvalue()


def change_npz(rng, content):
    """The same of a .npz file's bytes, an array gone, or a value in the JSON text in it."""
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    text = "about" if "about" in arrays else "metadata"
    name = str(rng.choice(list(arrays)))
    if rng.random() < 0.5:
        about = arrays[text]
        about = json.loads(about.item() if text == "about" else about.tobytes())
        what, about = change_value(rng, about)
        arrays[text] = np.array(json.dumps(about))
        if text == "metadata":
            arrays[text] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    elif rng.random() < 0.2:
        what = f"{name} gone"
        del arrays[name]
    else:
        what, arrays[name] = change_array(rng, arrays[name])
        what = f"{name} {what}"
    changed = io.BytesIO()
    np.savez(changed, **arrays)
    return what, changed.getvalue()


def change_weights(rng, content):
    """Weights with one tensor gone, another one, or no tensor: ``(what was changed, bytes)``."""
    weights = torch.load(io.BytesIO(content))
    name = str(rng.choice(list(weights)))
    old = weights.pop(name)
    others = [None, "text", old.double(), old.long(), old[None], old[:1], old * math.nan, -old]
    others += [old.to_sparse(), old.to("meta"), [old], {name: old}]
    number = int(rng.integers(len(others) + 1))
    if number < len(others):
        weights[name] = others[number]
    changed = io.BytesIO()
    torch.save(weights, changed)
    return f"{name} other {number}", changed.getvalue()


def change_safetensors(rng, content):
    """A safetensors file with one value of the JSON text in its header gone or another one."""
    with io.BytesIO(content) as file:
        size = int.from_bytes(file.read(8), "little")
        header, tensors = json.loads(file.read(size)), file.read()
    what, about = change_value(rng, json.loads(header["__metadata__"]["about"]))
    header["__metadata__"]["about"] = json.dumps(about)
    header = json.dumps(header).encode()
    return what, len(header).to_bytes(8, "little") + header + tensors
