#!/usr/bin/env python3
"""Fetch the pinned libtorch and unpack it below `libtorch/`, which Cargo's configuration points at.

usage: libtorch.py [--cuda] [--dest DIR]

libtorch comes from the PyTorch wheel on PyPI, because that is the one place every package mirror has. Only shared
libraries and headers are kept: no Python code is unpacked, and none runs when `nibble` runs. Without --cuda the two
small CUDA wheels that libtorch_cpu.so is linked with are added; with it, everything that libtorch_cuda.so needs.
Needs Python >= 3.9 with pip. Every wheel's SHA-256 is checked; a second run does nothing.
"""
import argparse
import hashlib
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile

TORCH_VERSION = "2.13.0"
# requirement, wheel platform tag, SHA-256 of the wheel (x86_64)
CPU_WHEELS = [
    (f"torch=={TORCH_VERSION}", "manylinux_2_28_x86_64", "60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7"),
    ("nvidia-cuda-runtime==13.0.96", "manylinux2014_x86_64", "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"),
    ("nvidia-cuda-cupti==13.0.85", "manylinux_2_25_x86_64", "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8"),
]
CUDA_WHEELS = [
    ("nvidia-cublas==13.1.1.3", "manylinux_2_27_x86_64", "37936a16db8fe4ac1f065c2139360608a543a09275cb1a1af612e08cfa065436"),
    ("nvidia-cuda-nvrtc==13.0.88", "manylinux2010_x86_64", "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575"),
    ("nvidia-cufft==12.0.0.61", "manylinux2014_x86_64", "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3"),
    ("nvidia-cufile==1.15.1.6", "manylinux2014_x86_64", "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44"),
    ("nvidia-curand==10.4.0.35", "manylinux_2_27_x86_64", "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc"),
    ("nvidia-cusolver==12.0.4.66", "manylinux_2_27_x86_64", "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112"),
    ("nvidia-cusparse==12.6.3.3", "manylinux2014_x86_64", "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b"),
    ("nvidia-nvjitlink==13.0.88", "manylinux2010_x86_64", "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b"),
    ("nvidia-nvtx==13.0.85", "manylinux1_x86_64", "4936d1d6780fbe68db454f5e72a42ff64d1fd6397df9f363ae786930fd5c1cd4"),
    ("nvidia-cudnn-cu13==9.20.0.48", "manylinux_2_27_x86_64", "0c45dd8eeb50b603f07995b1b300c62ffe6a1980482b82b3bcf94a4ca9d49304"),
    ("nvidia-cusparselt-cu13==0.8.1", "manylinux2014_x86_64", "786ce87568c303fadb5afcc7102d454cd3040d75f6f8626f5db460d1871f4dd0"),
    ("nvidia-nccl-cu13==2.29.7", "manylinux_2_18_x86_64", "edd81538446786ec3b73972543e53bb43bcaf0bfc8ef76cb679fcc390ffe136d"),
    ("nvidia-nvshmem-cu13==3.4.5", "manylinux2014_x86_64", "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80"),
]
# Libraries inside the PyTorch wheel that only the CUDA build or Python loads.
CUDA_LIBRARIES = ("libtorch_cuda.so", "libtorch_cuda_linalg.so", "libc10_cuda.so", "libtorch_nvshmem.so", "libcaffe2_nvrtc.so")
PYTHON_LIBRARIES = ("libtorch_python.so",)


def wanted(name, cuda):
    """Whether a wheel's member belongs into the tree: headers of torch, and shared libraries."""
    if name.endswith("/"):
        return False
    if name.startswith("torch/include/"):
        return True
    path = pathlib.PurePosixPath(name)
    if ".so" not in path.name or "lib" not in path.parts:
        return False
    if path.parts[0] == "torch":
        if path.parts[1] != "lib" or path.name in PYTHON_LIBRARIES:
            return False
        return cuda or path.name not in CUDA_LIBRARIES
    return path.parts[0] == "nvidia"


def fetch(requirement, tag, sha256, into):
    """Download one wheel with pip (which knows the user's mirrors) and check its hash."""
    print(f"libtorch: downloading {requirement}", flush=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:",
         "--python-version", "3.11", "--implementation", "cp", "--platform", tag, "--dest", str(into), requirement],
        check=True)
    (wheel,) = into.glob("*.whl")
    digest = hashlib.sha256()
    with open(wheel, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        raise SystemExit(f"libtorch: {wheel.name} has SHA-256 {digest.hexdigest()}, expected {sha256}; "
                         "remove it from the package mirror's cache and try again")
    return wheel


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", action="store_true", help="also fetch what a CUDA GPU needs (about 2 GB more)")
    parser.add_argument("--dest", default=pathlib.Path(__file__).resolve().parent.parent / "libtorch", type=pathlib.Path)
    args = parser.parse_args()
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise SystemExit(f"libtorch: no pinned wheels for {platform.system()} {platform.machine()}; install libtorch "
                         f"{TORCH_VERSION} yourself and set LIBTORCH to its directory")
    wheels = CPU_WHEELS + (CUDA_WHEELS if args.cuda else [])
    stamp = args.dest / "wheels.txt"
    present = stamp.read_text().splitlines() if stamp.exists() else []
    # Unpacking torch again with --cuda adds the libraries that were left out before.
    label = {w: f"{w[0]} {w[2]}{' cuda' if args.cuda and w[0].startswith('torch==') else ''}" for w in wheels}
    missing = [w for w in wheels if not any(line == label[w] or line == label[w] + " cuda" for line in present)]
    if not missing:
        return
    args.dest.mkdir(parents=True, exist_ok=True)
    for wheel_pin in missing:
        with tempfile.TemporaryDirectory(dir=args.dest) as scratch:
            wheel = fetch(*wheel_pin, pathlib.Path(scratch))
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if wanted(name, args.cuda):
                        target = args.dest / name
                        target.parent.mkdir(parents=True, exist_ok=True)
                        with archive.open(name) as source, open(target, "wb") as sink:
                            shutil.copyfileobj(source, sink, 1 << 22)
        present.append(label[wheel_pin])
        stamp.write_text("\n".join(present) + "\n")
    (args.dest / "torch" / "build-version").write_text(TORCH_VERSION + "\n")
    print(f"libtorch: ready in {args.dest}")


if __name__ == "__main__":
    main()
