#!/usr/bin/env python3
"""Quantize a model with AWQ and with GPTQ, measure the results against the original, and let all three speak.

usage: demo.py [--nibble PROGRAM] MODEL_DIR
"""
import argparse
import json
import pathlib
import shlex
import subprocess
import textwrap

# A small share of the default calibration (128 windows of 2048 tokens), so that two CPU cores need minutes, not an hour.
CALIBRATION = ["--num-samples", "64", "--seq-len", "512"]
# The demo's model has a hidden size that groups of 128 do not divide.
# Named as `nibble` names the directories it writes.
METHODS = {"AWQ-4bit": ["--awq", "--group-size", "64"], "GPTQ-8bit": ["--gptq", "--bits", "8", "--group-size", "64"]}
PROMPT = "The three most important inventions of the twentieth century are"


def run(*command, capture=False):
    command = [str(part) for part in command]
    print(f"\n$ {shlex.join(command)}", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE if capture else None, text=True)
    if done.returncode:
        raise SystemExit(f"demo: that command failed with exit code {done.returncode}")
    return done.stdout


def mib(n_bytes):
    return "-" if n_bytes is None else f"{n_bytes / 2**20:,.0f} MiB"


def weights_bytes(directory):
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def print_table(header, rows):
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, ["-" * width for width in widths], *rows]:
        print("  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                        for i, (cell, width) in enumerate(zip(row, widths))).rstrip())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--nibble", default="target/release/nibble", type=pathlib.Path)
    args = parser.parse_args()

    directories = {"original": args.model}
    for name, options in METHODS.items():
        directories[name] = args.model / name
        run(args.nibble, *options, *CALIBRATION, "--overwrite", args.model)

    measured = run(args.nibble, "eval", *directories.values(), "--reference", args.model, "--json", capture=True)
    rows, texts = [], {}
    for (name, directory), line in zip(directories.items(), measured.splitlines()):
        quality = json.loads(line)
        texts[name] = run(args.nibble, "generate", directory, "--prompt", PROMPT, "--max-tokens", "48", capture=True).strip()
        cost = ["-", "-", "-"]
        if directory != args.model:
            report = json.loads((directory / "quantization_report.json").read_text())
            memory = report["memory"]
            vram = memory["vram"] or {"process": {"peak": None}, "device": {"peak": None}}
            peaks = [memory["ram"]["peak"], vram["process"]["peak"] or vram["device"]["peak"]]
            cost = [f"{report['seconds']:.1f} s", *(mib(peak and peak["bytes"]) for peak in peaks)]
        rows.append([name, mib(weights_bytes(directory)), f"{quality['perplexity']:.3f}", f"{quality['kl_divergence']:.5f}",
                     f"{quality['top1_agreement']:.1%}", *cost])

    for name, text in texts.items():
        print(f"\n{name}:")
        print(textwrap.indent(textwrap.fill(text, 100), "  "))
    print()
    print_table(["model", "weights", "perplexity", "KL divergence", "same token", "time", "peak RAM", "peak VRAM"], rows)
    print(f"\nThe quantized models are in {', '.join(str(d) for d in directories.values() if d != args.model)}.")


if __name__ == "__main__":
    main()
