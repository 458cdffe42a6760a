"""Damage binary formats such that headers, checksums and lengths stay consistent."""

import json
import pickle
import struct
import zipfile
import zlib
from dataclasses import dataclass
from io import BytesIO
from random import Random
from typing import Any

from PIL import Image

from fuzz.bytewise import NAMES, VALUES, hostile_json, hostile_value

DTYPES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "F16": 2, "BF16": 2, "I32": 4, "F32": 4, "I64": 8, "F64": 8}
SHAPES = ([], [0], [0, 2**40], [2**20, 0], [2**40], [2**31, 2**31], [-1], [1, 1, 1, 1, 1], [1.5], ["a"], None, [2**64])


@dataclass
class Stored:
    """A tensor of a safetensors file."""

    dtype: str
    shape: Any
    content: bytes


def read(content: bytes) -> tuple[dict[str, Stored], dict[str, str]]:
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, row in header.items():
        first, last = row["data_offsets"]
        tensors[name] = Stored(row["dtype"], row["shape"], content[start + first : start + last])
    return tensors, metadata


def write(tensors: dict[str, Stored], metadata: Any) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata}
    content = b""
    for name, tensor in tensors.items():
        place = [len(content), len(content) + len(tensor.content)]
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": place}
        content += tensor.content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content


def hostile_header(draw: Random, content: bytes) -> bytes:
    """Make a safetensors header differ from its file."""
    start = 8 + int.from_bytes(content[:8], "little")
    if draw.random() < 0.1:
        size = draw.choice((0, 1, 2**20, 2**40, 2**63, start * 2))
        return size.to_bytes(8, "little") + content[8:]
    text = hostile_json(draw, content[8:start])
    return len(text).to_bytes(8, "little") + text + content[start:]


def hostile_metadata(draw: Random, content: bytes) -> bytes:
    """Change a safetensors file's metadata."""
    tensors, metadata = read(content)
    for _ in range(draw.choice((1, 1, 2))):
        key = draw.choice([key for key in metadata if key != "format"] or ["x"])
        kind = draw.random()
        if kind < 0.1:
            metadata.pop(key, None)
        elif kind < 0.2:
            metadata[key] = str(draw.choice(VALUES))
        else:
            try:
                metadata[key] = hostile_json(draw, metadata[key].encode()).decode("utf-8", "replace")
            except (ValueError, KeyError, RecursionError):
                metadata[key] = draw.choice(NAMES)
    return write(tensors, metadata)


def hostile_tensors(draw: Random, content: bytes) -> bytes:
    """Change a safetensors file's tensors."""
    tensors, metadata = read(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        name = draw.choice(list(tensors) or ["x"])
        tensor = tensors.setdefault(name, Stored("U8", [0], b""))
        kind = draw.random()
        if kind < 0.1:
            del tensors[name]
        elif kind < 0.2:
            tensors[draw.choice((*NAMES, name + "/x"))] = tensors.pop(name)
        elif kind < 0.3:
            tensor.dtype = draw.choice(list(DTYPES))
            tensor.shape = [len(tensor.content) // DTYPES[tensor.dtype]]
        elif kind < 0.4:
            tensor.shape = draw.choice(SHAPES)
        elif kind < 0.6:
            size = draw.choice((0, 1, 2, 8, 1000))
            tensors[name] = Stored("U8", [size], draw.choice((b"\xff" * size, draw.randbytes(size))))
        elif kind < 0.7:
            tensor.content = bytes(len(tensor.content))
        elif kind < 0.8:
            tensor.content = draw.choice((b"\xff", b"\x7f")) * len(tensor.content)
        else:
            packed = zlib.compress(_stream(draw, tensor.content), draw.choice((0, 9)))
            packed = packed[: draw.choice((len(packed), len(packed) // 2))]
            tensors[name] = Stored("U8", [len(packed)], packed)
    return write(tensors, metadata)


def _stream(draw: Random, packed: bytes) -> bytes:
    """Unpack a coded mask or owner map, and change it."""
    try:
        content = zlib.decompress(packed)
    except zlib.error:
        content = packed
    value = draw.choice((b"\0", b"\xff", b"\xfe", b"\x01"))
    return draw.choice((content + value, content[:-1], value * 5_000_000, value * len(content), b"", content * 2))


def hostile_tensor_file(draw: Random, content: bytes) -> bytes:
    """Damage a safetensors file in one of these ways."""
    return draw.choice((hostile_header, hostile_metadata, hostile_metadata, hostile_tensors))(draw, content)


class Spell:
    """Runs code when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        import os

        return os.system, (self.command,)


def hostile_checkpoint(draw: Random, content: bytes) -> bytes:
    """Make a checkpoint's pickle run code, or change its records or keys."""
    kind = draw.random()
    if kind < 0.1:
        return pickle.dumps({"state_dict": {}, "loops": Spell("touch fuzzed")}, protocol=draw.choice((0, 2, 4)))
    with zipfile.ZipFile(BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice(list(entries))
    pickled = next(entry for entry in entries if entry.endswith("data.pkl"))
    if kind < 0.3:
        entries[pickled] = pickle.dumps({"state_dict": {}, "loops": Spell("touch fuzzed")}, protocol=2)
    elif kind < 0.5:
        entries[name] = draw.choice((b"", entries[name][:-1], b"\xff" * len(entries[name]), b"\0" * 5_000_000))
    elif kind < 0.6:
        del entries[name]
    elif kind < 0.8:
        packed = {
            "msh.packed": draw.choice(("mask", "bytes", "sparse")),
            "shape": [40, 50],
            "marks": True,
            "bytes": b"",
        }
        value: Any = {"state_dict": {"a": [1]}, "loops": {"fit_loop": {"state_dict": {}}}, "callbacks": packed}
        entries[pickled] = pickle.dumps(hostile_value(draw, value), protocol=2)
    else:
        place = draw.randrange(len(entries[pickled]))
        entries[pickled] = entries[pickled][:place] + draw.randbytes(1) + entries[pickled][place + 1 :]
    file = BytesIO()
    with zipfile.ZipFile(file, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, entry in entries.items():
            archive.writestr(name, entry)
    return file.getvalue()


SIDES = (0, 1, 3, 5_000, 12_000, 30_000, 2**16 - 1, 2**31 - 1)
FOREIGN = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(fuzzed) (w) file\n%%EOF\n",
    b"%PDF-1.4\n1 0 obj <</Type /Catalog>> endobj\n",
    b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>',
    b'/* XPM */\nstatic char *x[] = {\n"8 8 1 1",\n"a c #000"};',
    b"GIF89a\xff\xff\xff\xff\x80\0\0",
    b"\x80\x04\x95",
)
SAVED = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "ICO", "PCX", "TGA")


def hostile_image(draw: Random, content: bytes) -> bytes:
    """Change an image's size, format or mode, or cut it; PNG checksums stay right."""
    kind = draw.random()
    if kind < 0.1:
        return draw.choice(FOREIGN)
    if kind < 0.3:
        file = BytesIO()
        image = Image.new(draw.choice(("L", "RGB")), (draw.choice((1, 6, 200)), 4))
        image.save(file, draw.choice(SAVED))
        content = file.getvalue()
        return content[: draw.choice((len(content), draw.randrange(len(content))))]
    return _other_png(draw, content) if content.startswith(b"\x89PNG") else _other_jpeg(draw, content)


def _other_png(draw: Random, content: bytes) -> bytes:
    """Change, double, remove or add a PNG chunk."""
    chunks, place = [], 8
    while place < len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + size]))
        place += 12 + size
    kind = draw.random()
    if kind < 0.4:
        sides = struct.pack(">II", draw.choice(SIDES), draw.choice(SIDES))
        chunks[0] = (chunks[0][0], sides + chunks[0][1][8:])
    elif kind < 0.6:
        header = bytearray(chunks[0][1])
        header[draw.randrange(8, 13)] = draw.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
        chunks[0] = (chunks[0][0], bytes(header))
    elif kind < 0.8:
        name = draw.choice((b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"eXIf"))
        bomb = b"a\0\0" + zlib.compress(bytes(20_000_000), 9)
        chunks.insert(draw.randrange(len(chunks)), (name, draw.choice((b"", bomb, draw.randbytes(30)))))
    elif kind < 0.9:
        chunks.pop(draw.randrange(len(chunks)))
    else:
        chunks = [(name, zlib.compress(bytes(20_000_000)) if name == b"IDAT" else data) for name, data in chunks]
    parts = [struct.pack(">I", len(data)) + name + data + _crc(name + data) for name, data in chunks]
    return content[:8] + b"".join(parts)


def _crc(content: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(content))


def _other_jpeg(draw: Random, content: bytes) -> bytes:
    """Change a JPEG's size or number of components."""
    place = content.find(b"\xff\xc0")
    frame = bytearray(content[place : place + 10])
    sides = (draw.choice(SIDES) & 0xFFFF, draw.choice(SIDES) & 0xFFFF)
    frame[5:9] = struct.pack(">HH", *sides)
    if draw.random() < 0.3:
        frame[9] = draw.choice((0, 1, 2, 4, 255))
    return content[:place] + bytes(frame) + content[place + 10 :]
