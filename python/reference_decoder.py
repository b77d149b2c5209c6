#!/usr/bin/env python3
"""Decodes the compressed matrices of a safetensors file: docs/format.md, version 1, short and slow."""
import argparse
import importlib.util
import json
import re
import struct
from collections import namedtuple
from collections.abc import Iterator
from io import BytesIO

import numpy as np

xxhash = importlib.import_module("xxhash") if importlib.util.find_spec("xxhash") else None
Header = namedtuple("Header", "magic version layout dtype rows columns tile_rows tile_columns scale_bits granularity "
                    "table_count zero table_bytes zeros payload_bytes checksum own_checksum")
Table = tuple[int, list[tuple[int, int, int]]]  # first exponent; for each slot: symbol, frequency, slot - start(symbol)
LAYOUTS, MOST_R, MOST_FIRST = ("fast", "small", "exact_bf16", "exact_fp16"), (8, 3, 7, 10), (0, 0, 241, 17)
SHIFTS, MASKS = ([0, 2, 4, 6], [0], [0, 4], [0, 4]), (3, 127, 15, 15)  # where the classes of a symbol are, by layout
PARTS = ("scales", "tables", "tiles", "payload")
LANE, WEIGHT = np.ogrid[:32, :32]
PLACES = np.array([LANE // 4 + 8 * (WEIGHT // 2 % 2),  # row and column within the group, by [lane, weight]
                   16 * (LANE % 4) + 4 * (WEIGHT // 8) + 2 * (WEIGHT % 8 // 4) + WEIGHT % 2])


def check(condition: bool, message: str, kind: str = "Corrupt") -> None:
    """Raises an error of the kind (Corrupt, Truncated or Unsupported) unless the condition holds."""
    if not condition:
        raise ValueError(f"{kind}: {message}")


def check_sum(data: bytes, expected: int, what: str) -> None:
    """Compares an XXH3-64, if the package that computes it is there."""
    check(xxhash is None or xxhash.xxh3_64_intdigest(data) == expected, f"{what}: checksum")


def parse_header(data: bytes) -> Header:
    """Reads and checks a header; magic and version come first, as the rest is another version's to change."""
    check(len(data) == 56, f"header of {len(data)} bytes", "Truncated")
    h = Header(*struct.unpack("<4sHBBIIHHBBBBIIQQQ", data))
    check(h.magic == b"CLLM", "magic")
    check(h.version == 1, f"version {h.version}", "Unsupported")
    check_sum(data[:48], h.own_checksum, "header")
    check(h.layout <= 3 and h.granularity <= (h.layout < 2) and h.zero == h.zeros == 0, "code in the header")
    check(h.dtype in ((0, 1, 2), (0, 4 - h.layout))[h.layout > 1] and h.scale_bits == 11 + (h.layout > 0), "dtype")
    check(h.rows > 0 and h.columns > 0, "shape")
    check(h.tile_rows % 16 == h.tile_columns % 64 == 0 < h.tile_rows * h.tile_columns <= 65535, "tile shape")
    return h


def take(source: BytesIO, count: int, dtype: str = "u1") -> np.ndarray:
    """The next `count` elements of a buffer."""
    data = source.read(int(count) * np.dtype(dtype).itemsize)
    check(len(data) == count * np.dtype(dtype).itemsize, "too few bytes")
    return np.frombuffer(data, dtype)


def parse_table(source: BytesIO, layout: int) -> Table:
    """Reads the frequencies of one table and lays them out by slot."""
    first, frequencies = int(take(source, 1)[0]) if layout > 1 else 0, []
    check((layout > 1) <= first <= MOST_FIRST[layout], "first exponent")
    while len(frequencies) < 256:
        byte = int(take(source, 1)[0])
        more = int(take(source, 1)[0]) if byte == 0 or byte >= 128 else 0
        frequencies += [0] * (more + 1) if byte == 0 else [byte % 128 + 128 * more if byte >= 128 else byte]
    most, total = (4095, 4096) if layout else (511, 2048)
    check(len(frequencies) == 256 and sum(frequencies) == total and max(frequencies) <= most, "table")
    return first, [(symbol, count, place) for symbol, count in enumerate(frequencies) for place in range(count)]


def decode_lane(x: int, words: list[int], slots: list, scale_bits: int, count: int) -> Iterator[int]:
    """The `count` symbols of one lane from its first state and its words."""
    at, mask = 0, (1 << scale_bits) - 1
    for _ in range(count):
        symbol, frequency, place = slots[x & mask]
        x = frequency * (x >> scale_bits) + place
        if x < 1 << 16:
            check(at < len(words), "a lane has too few words")
            x, at = x << 16 | words[at], at + 1
        yield symbol
    check(x == 1 << 16 and at == len(words), "a lane does not end in state 2^16 at its last word")


def raw_halves(source: BytesIO, inside: np.ndarray, r: int, signed: bool) -> np.ndarray:
    """The raw bits of one group as halves [lane, weight]."""
    width, owners, halves = r + signed, inside.any(1), np.zeros((32, 32), np.uint64)
    lanes, count = owners.sum(), inside.sum() * width  # of bits
    data = take(source, -(-count // 128) * 16)
    bits = np.unpackbits(data, bitorder="little").astype(np.uint64)
    check(not bits[count:].any(), "padding is not zero")
    if (inside.all(1) == owners).all():
        words, registers = data.view("<u4").astype(np.uint64), np.zeros((lanes, 16), np.uint64)
        low, sign = 0, int(signed)
        for size in [8] * (width // 8) + [part for part in (4, 2, 1) if width & part]:
            mask = ((1 << size - sign) - 1) << low | sign << 15  # the places of this part in a half
            part = words[:lanes * size].reshape(-1, lanes, min(size, 4)).swapaxes(0, 1).reshape(lanes, size)
            for j in range(16):
                word, turn = part[:, j * size // 16], j * size % 16
                registers[:, j] |= (word >> turn | word << 32 - turn) & (mask << 16 | mask)
            low, sign, words = low + size - sign, 0, words[lanes * size:]
        halves[owners] = np.stack([registers & 0xFFFF, registers >> 16], 2).reshape(-1, 32)
    else:
        places = np.array([*range(r)] + [15] * signed, np.uint64)
        halves[inside] = (bits[:count].reshape(inside.sum(), width) << places).sum(1)
    return halves.astype(np.int64)


def decode_tile(h: Header, tables: list[Table], entry: list[int], payload: bytes, grid: np.ndarray) -> None:
    """Decodes one tile into its part of the grid, zeros; `entry` is table, flags, escapes."""
    source, (table, flags, escapes), (rows, columns) = BytesIO(payload), entry, grid.shape
    coded, r, exact = table != 255, flags & 15, h.layout > 1
    check(flags < 128 and r <= (MOST_R[h.layout] if coded else 10) and (table < len(tables) or not coded), "tile")
    if exact:  # a float's bits all or none; no LEFT; wide escapes
        check(r == MOST_R[h.layout] * coded and not flags & 16 and (flags & 64 or not escapes), "exact tile")
    y, x = np.mgrid[0:rows:16, 0:columns:64].reshape(2, -1, 1, 1) + PLACES[:, None]  # by [group, lane, weight]
    inside = (y < rows) & (x < columns)
    states, lengths = take(source, 32 * coded, "<u4").tolist(), take(source, 32 * coded, "<u2" if flags & 32 else "u1")
    halves = np.array([raw_halves(source, group, r, h.layout != 1 if coded else r > 0) for group in inside])
    if coded:
        wanted = inside.reshape(len(inside), 32, -1, len(SHIFTS[h.layout])).any(3)  # [group, lane, symbol]
        symbols = np.zeros(wanted.shape, np.int64)
        for lane, mine in enumerate(wanted.swapaxes(0, 1)):
            words = take(source, lengths[lane], "<u2").tolist()
            symbols[:, lane][mine] = [*decode_lane(states[lane], words, tables[table][1], h.scale_bits, mine.sum())]
        classes = (symbols[..., None] >> np.array(SHIFTS[h.layout]) & MASKS[h.layout]).reshape(halves.shape)
        classes += (classes > 0) * (tables[table][0] - 1) * exact
        halves |= classes << r | (symbols >> 7 << 15 if h.layout == 1 else 0)
    grid[y[inside], x[inside]] = (halves if exact else np.where(halves >> 15, -(halves & 0x7FFF), halves))[inside]
    positions = take(source, escapes, "<u2").astype(np.int64)
    check(bool((np.diff(positions) > 0).all() and (positions < rows * columns).all()), "escape positions")
    grid.flat[positions] = take(source, escapes, "<i2" if flags & 64 else "i1")
    check(bytes(-source.tell() % 16) == source.read(), "end of a tile's payload")
    for first in range(0, columns, 16) if flags & 16 else ():  # LEFT
        grid[:, first:first + 16] = grid[:, first:first + 16].cumsum(1)


def decode_matrix(tensors: dict[str, bytes], path: str) -> tuple[Header, np.ndarray, np.ndarray]:
    """Header, integer grid (in an exact layout the floats' bits) and FP32 scales of one compressed matrix."""
    check(all(f"{path}.{part}" in tensors for part in PARTS), f"{path}: a tensor of the five is missing")
    h, parts = parse_header(tensors[f"{path}.header"]), [tensors[f"{path}.{part}"] for part in PARTS]
    down, right = -(-h.rows // h.tile_rows), -(-h.columns // h.tile_columns)
    lengths = [2 * (1, h.rows)[h.granularity], h.table_bytes, 8 * down * right, h.payload_bytes]
    check(lengths == [len(part) for part in parts], f"{path}: length of a buffer")
    check_sum(b"".join(parts), h.checksum, path)
    source, (scales, _, entries, payload) = BytesIO(parts[1]), parts
    check(h.layout < 2 or scales == b"\x80\x3f", f"{path}: scale of floats")
    tables = [parse_table(source, h.layout) for _ in range(h.table_count)]
    check(source.tell() == h.table_bytes, f"{path}: bytes after the last table")
    tiles, grid = list(struct.iter_unpack("<IBBH", entries)), np.zeros((h.rows, h.columns), np.int16)
    for index, (offset, *entry) in enumerate(tiles):
        end = 16 * tiles[index + 1][0] if index + 1 < len(tiles) else h.payload_bytes
        check(16 * offset <= end <= h.payload_bytes, f"{path}: offset of a tile")
        y, x = index // right * h.tile_rows, index % right * h.tile_columns
        decode_tile(h, tables, entry, payload[16 * offset:end], grid[y:y + h.tile_rows, x:x + h.tile_columns])
    return h, grid, (np.frombuffer(scales, "<u2").astype(np.uint32) << 16).view(np.float32)


def read_safetensors(path: str) -> dict[str, bytes]:
    """The tensors of a file by name, once the container's own checksums are compared."""
    data = np.fromfile(path, np.uint8).tobytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    check(8 <= begin <= len(data), "file header", "Truncated")
    entries = json.loads(data[8:begin])
    metadata = entries.pop("__metadata__", None)
    spans = {name: entry["data_offsets"] for name, entry in entries.items()}
    check(all(0 <= first <= end <= len(data) - begin for first, end in spans.values()), "file data", "Truncated")
    tensors = {name: data[begin + first:begin + end] for name, (first, end) in spans.items()}
    if metadata is not None and any(name.endswith(".header") for name in tensors):
        check("codecllm.header" in metadata, "no codecllm.header")
        zeroed = re.sub(rb'("codecllm\.header"\s*:\s*")[0-9a-f]{16}', rb"\g<1>" + b"0" * 16, data[8:begin])
        check_sum(zeroed, int(metadata["codecllm.header"], 16), "file header")
        for name in (name for name in tensors if f"codecllm.xxh3.{name}" in metadata):
            check_sum(tensors[name], int(metadata[f"codecllm.xxh3.{name}"], 16), name)
    for name, bias in tensors.items():
        if name.endswith(".bias") and name.removesuffix("bias") + "weight.header" in tensors:
            check(len(bias) >= 16 and bias[8] <= 2 and not any(bias[9:16]), name)
            check_sum(bias[8:], int.from_bytes(bias[:8], "little"), name)
    return tensors


def main() -> None:
    """Prints a line for each compressed matrix."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--npz", metavar="OUT", help="save the grids, by path")
    options = parser.parse_args()
    tensors, grids = read_safetensors(options.file), {}
    for path in (name.removesuffix(".header") for name in tensors if name.endswith(".header")):
        h, grid, scales = decode_matrix(tensors, path)
        print(path, list(grid.shape), LAYOUTS[h.layout], "sum", grid.sum(dtype=np.int64), "min", grid.min(),
              "max", grid.max(), "first", grid.flat[:8].tolist(), "scale", scales[0],
              "checksums right" if xxhash else "checksums not checked: xxhash is not installed")
        grids[path] = grid
    if options.npz:
        np.savez(options.npz, **grids)


if __name__ == "__main__":
    main()
