#!/usr/bin/env python3
"""Measure whole runs of `nibble`: seconds, CPU seconds and peak memory of the process, and the quality of what it wrote.

usage: bench.py [--nibble PROGRAM] [--runs N] [--only SUBSTRING] MODEL_DIR     (needs numpy, for the synthetic models)

Speed and quality are measured on MODEL_DIR with 64 windows of 512 tokens; memory on random models of 8 and of 32 layers,
which must differ by little: what is held at a time is one stage, not the model. Each figure is the median over the runs;
the spread (largest minus smallest) stands beside the seconds.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
SHARED_TEXT = HERE.parent.parent / "shared" / "data"
CALIBRATION = ["--num-samples", "64", "--seq-len", "512"]
QUANTIZATIONS = {
    "gptq 4-bit": ["--gptq", "--bits", "4", "--group-size", "64"],
    "gptq 8-bit": ["--gptq", "--bits", "8", "--group-size", "64"],
    "awq 4-bit": ["--awq", "--group-size", "64"],
}
SYNTHETIC_HIDDEN = 1024
SYNTHETIC_LAYERS = (8, 32)
SYNTHETIC_OPTIONS = {"gptq 4-bit": ["--gptq", "--bits", "4"], "awq 4-bit": ["--awq"]}


def measure(command):
    """Run `command` to its end; returns wall seconds, CPU seconds (user and system) and peak resident bytes."""
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace")[-4000:])
            raise SystemExit(f"bench: exit code {process.returncode}: {' '.join(map(str, command))}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def shared_text(option, name):
    """The option that names a shared text, or none (and a warning) where the text is not there."""
    path = SHARED_TEXT / name
    if path.exists():
        return [option, path]
    print(f"bench: SKIPPED {option} {name}: {path} is missing; the built-in text is used, and figures do not compare "
          "with those of other tools", file=sys.stderr)
    return []


def synthetic(layers, tokenizer):
    directory = tokenizer.parent / f"synthetic-{SYNTHETIC_HIDDEN}x{layers}"
    if not (directory / "model.safetensors").exists():
        subprocess.run([sys.executable, HERE / "synthetic.py", directory, "--hidden", str(SYNTHETIC_HIDDEN), "--layers",
                        str(layers), "--tokenizer-from", tokenizer], check=True)
    return directory


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--nibble", default="target/release/nibble", type=pathlib.Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="only the cases whose name contains this")
    parser.add_argument("--json", type=pathlib.Path, help="append one JSON line per case to this file")
    args = parser.parse_args()

    model = args.model.resolve()
    calib_text = shared_text("--calib-data", "wiki_calib.txt")
    eval_text = shared_text("--text", "wiki_eval.txt")
    cases = {f"{model.name}, {name}": (lambda: model, options, True) for name, options in QUANTIZATIONS.items()}
    for layers in SYNTHETIC_LAYERS:
        for name, options in SYNTHETIC_OPTIONS.items():
            make = lambda layers=layers: synthetic(layers, model)  # noqa: E731
            cases[f"random {SYNTHETIC_HIDDEN}x{layers}, {name}"] = (make, options, False)

    print(f"{'case':42} {'seconds':>8} {'spread':>7} {'CPU s':>8} {'peak RAM':>10} {'perplexity':>10} {'KL':>8}", flush=True)
    for name, (directory_of, options, with_quality) in cases.items():
        if args.only not in name:
            continue
        directory = directory_of()
        with tempfile.TemporaryDirectory(dir=model.parent) as scratch:
            output = pathlib.Path(scratch) / "quantized"
            command = [args.nibble, *options, *CALIBRATION, *calib_text, "--output", output, "--overwrite", directory]
            runs = [measure(command) for _ in range(args.runs)]
            wall, cpu, peak = (statistics.median(figures) for figures in zip(*runs))
            spread = max(run[0] for run in runs) - min(run[0] for run in runs)
            row = {"case": name, "runs": args.runs, "seconds": wall, "spread": spread, "cpu_seconds": cpu, "peak_bytes": peak}
            quality = ""
            if with_quality:
                evaluate = [args.nibble, "eval", output, "--reference", directory, *eval_text, "--json"]
                measured = json.loads(subprocess.run([str(part) for part in evaluate], check=True, stdout=subprocess.PIPE).stdout)
                row |= {"perplexity": measured["perplexity"], "kl_divergence": measured["kl_divergence"]}
                quality = f" {row['perplexity']:10.3f} {row['kl_divergence']:8.4f}"
        print(f"{name:42} {wall:8.1f} {spread:7.1f} {cpu:8.1f} {peak / 2**20:6.0f} MiB{quality}", flush=True)
        if args.json:
            with open(args.json, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
