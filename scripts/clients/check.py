#!/usr/bin/env python3
"""Load what `nibble` writes in the clients it is written for, and compare perplexity: theirs, by their own kernels,
against `nibble eval`, on the same windows. Fails where one does not load or differs by more than the tolerance.

usage: check.py [--nibble PROGRAM] [--text FILE] [--client NAME] MODEL_DIR

GPTQ 8-bit, GPTQ 4-bit and AWQ 4-bit versions of MODEL_DIR are made if they are not there. The clients, each in an
environment of its own (scripts/venv.sh): transformers, on GPTQModel's CPU kernels; vLLM's CPU server, which takes 4 bits.
"""
import argparse
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TOLERANCE = 0.005
CALIBRATION = ["--num-samples", "64", "--seq-len", "512"]
# Directory, as nibble names it -> the options that make it and the clients that take it.
FORMATS = {
    "GPTQ-8bit": (["--gptq", "--bits", "8", "--group-size", "64"], ["transformers"]),
    "GPTQ-4bit": (["--gptq", "--bits", "4", "--group-size", "64"], ["transformers", "vllm"]),
    "AWQ-4bit": (["--awq", "--group-size", "64"], ["transformers", "vllm"]),
}
VENVS = {"transformers": "gptqmodel", "vllm": "vllm"}


def nibble_perplexity(args, directory):
    command = [args.nibble, "eval", directory, "--text", args.text, "--windows", str(args.windows),
               "--seq-len", str(args.seq_len), "--dtype", "float32", "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["perplexity"]


def client_result(args, client, directory):
    """What the client's script printed last, or None where it failed (its words are on stderr)."""
    python = subprocess.run([HERE.parent / "venv.sh", VENVS[client]], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    command = [ROOT / python, HERE / f"with_{client}.py", directory, "--text", args.text, "--windows", str(args.windows),
               "--seq-len", str(args.seq_len)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    return None if done.returncode else json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--nibble", default=ROOT / "target/release/nibble", type=pathlib.Path)
    parser.add_argument("--text", default=ROOT.parent / "shared/data/wiki_eval.txt", type=pathlib.Path)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--client", choices=VENVS, help="this one only")
    args = parser.parse_args()
    if not args.text.exists():
        print(f"clients: SKIPPED, nothing was checked: {args.text} is missing; name a text with --text", file=sys.stderr)
        return

    print(f"{'model':12} {'client':13} {'nibble':>9} {'client':>9} {'differs':>8}  verdict", flush=True)
    failures = 0
    for name, (options, clients) in FORMATS.items():
        directory = args.model.resolve() / name
        if not directory.exists():
            subprocess.run([args.nibble, *options, *CALIBRATION, args.model], check=True)
        expected = nibble_perplexity(args, directory)
        for client in clients:
            if args.client not in (None, client):
                continue
            result = client_result(args, client, directory)
            if result is None:
                failures += 1
                print(f"{name:12} {client:13} {expected:9.4f} {'-':>9} {'-':>8}  FAILED to load or run", flush=True)
                continue
            difference = result["perplexity"] / expected - 1
            good = abs(difference) <= TOLERANCE
            failures += not good
            print(f"{name:12} {client:13} {expected:9.4f} {result['perplexity']:9.4f} {difference:+8.3%}  "
                  f"{'ok' if good else 'TOO FAR'}; {result['kernel']}; {result['text'].strip()!r}", flush=True)
    if failures:
        raise SystemExit(f"clients: {failures} of the checks above failed")


if __name__ == "__main__":
    main()
