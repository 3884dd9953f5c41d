#!/usr/bin/env python3
"""Compare golden files that were made again with those that are committed: floats may differ in their last bits, as another
kind of CPU sums in another order; all else is equal. Files that differ in such bits alone get the committed bytes back.

usage: same_golden.py DIRECTORY     exit code 1 where anything else differs
"""
import json
import pathlib
import subprocess
import sys

import numpy

# Of the tensor's largest absolute value; Rust's own checks allow 1e-4 for logits.
TOLERANCE = 2e-5
DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


def git(*args: str) -> bytes:
    return subprocess.run(["git", *args], check=True, capture_output=True).stdout


def parts(content: bytes) -> tuple[dict, bytes]:
    """Header and tensors' bytes of a safetensors file."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def difference(old: bytes, new: bytes) -> float:
    """The largest difference of floats, in parts of their tensor's largest value; infinite where anything else differs."""
    (header, old), (new_header, new) = parts(old), parts(new)
    if header != new_header or len(old) != len(new):
        return numpy.inf
    largest = 0.0
    for name, info in header.items():
        if name == "__metadata__":
            continue
        begin, end = info["data_offsets"]
        if old[begin:end] == new[begin:end]:
            continue
        if info["dtype"] not in DTYPES:
            return numpy.inf
        a, b = (numpy.frombuffer(x[begin:end], DTYPES[info["dtype"]]).astype("f8") for x in (old, new))
        found = numpy.abs(a - b).max() / max(numpy.abs(a).max(), 1e-30)
        # Not a number either.
        largest = max(largest, found) if found <= TOLERANCE else numpy.inf
    return largest


def main() -> int:
    folder = sys.argv[1]
    status = 0
    for line in git("status", "--porcelain", "--", folder).decode().splitlines():
        state, path = line[:2], pathlib.Path(line[3:])
        if state == " M" and path.suffix == ".safetensors":
            found = difference(git("show", f"HEAD:{path}"), path.read_bytes())
            if found <= TOLERANCE:
                print(f"golden: {path}: equal but for {found:.1e} of scale, which another CPU explains")
                git("checkout", "--", str(path))
                continue
        print(f"golden: {path} differs from what is committed", file=sys.stderr)
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
