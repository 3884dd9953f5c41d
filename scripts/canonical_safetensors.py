#!/usr/bin/env python3
"""Rewrite safetensors headers with their metadata sorted: the `safetensors` package writes it in an order that changes
from run to run, which would make equal files differ.

usage: canonical_safetensors.py FILE...
"""
import json
import pathlib
import sys

for path in map(pathlib.Path, sys.argv[1:]):
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    metadata = header.pop("__metadata__", None)
    if metadata is not None:
        header = {"__metadata__": dict(sorted(metadata.items())), **header}
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + content[end:])
