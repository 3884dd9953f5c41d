#!/usr/bin/env python3
"""Measure whole runs of `nibble`: seconds, CPU seconds and peak memory of the process, and the quality of what it wrote.

usage: bench.py [--nibble PROGRAM] [--runs N] [--only SUBSTRING] MODEL_DIR     (needs numpy, for the synthetic models)

Speed and quality are measured on MODEL_DIR with 64 windows of 512 tokens, and speed on a random Llama of a billion parameters
with 8 windows of 2048; memory on random models of 8 to 64 layers, which must differ by little: what is held at a time is one
stage, not the model. Times over layers and over tokens are fitted by a line each. Each figure is the median over the runs; the
spread (largest minus smallest) stands beside the seconds. "floor" is the least time that the run could have taken at the rates
that the machine reached, as quantization_report.log has it part by part; "ratio" is the median of seconds over it.
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

import numpy

HERE = pathlib.Path(__file__).resolve().parent
SHARED_TEXT = HERE.parent.parent / "shared" / "data"
CALIBRATION = ["--num-samples", "64", "--seq-len", "512"]
QUANTIZATIONS = {
    "gptq 4-bit": ["--gptq", "--bits", "4", "--group-size", "64"],
    "gptq 8-bit": ["--gptq", "--bits", "8", "--group-size", "64"],
    "awq 4-bit": ["--awq", "--group-size", "64"],
}
SYNTHETIC_OPTIONS = {"gptq 4-bit": ["--gptq", "--bits", "4"], "awq 4-bit": ["--awq"]}
# Hidden size, layers, windows and tokens in each.
BILLION = (2048, 16, 8, 2048)
LAYER_SERIES = [(1024, layers, 16, 512) for layers in (8, 16, 32, 64)]
MIXTURE = {
    "dense, 3072 wide": ["--intermediate", "3072"],
    "8 of 128 experts, 384 wide": ["--intermediate", "384", "--experts", "128"],
}
TOKEN_SERIES = [(1024, 8, windows, 512) for windows in (16, 32, 64, 128)]


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


def synthetic(hidden, layers, tokenizer, *options):
    directory = tokenizer.parent / "-".join([f"synthetic-{hidden}x{layers}", *(option.strip("-") for option in options)])
    if not (directory / "model.safetensors").exists():
        subprocess.run([sys.executable, HERE / "synthetic.py", directory, "--hidden", str(hidden), "--layers", str(layers),
                        "--tokenizer-from", tokenizer, *options], check=True)
    return directory


def calibration(windows, seq_len):
    return ["--num-samples", str(windows), "--seq-len", str(seq_len)]


class Bench:
    """Runs cases and prints a row for each."""

    def __init__(self, args):
        self.args = args
        self.model = args.model.resolve()
        self.calib_text = shared_text("--calib-data", "wiki_calib.txt")
        self.eval_text = shared_text("--text", "wiki_eval.txt")
        print(f"{'case':44} {'seconds':>8} {'spread':>7} {'CPU s':>8} {'floor':>7} {'ratio':>6} {'peak RAM':>10} "
              f"{'perplexity':>10} {'KL':>8}", flush=True)

    def case(self, name, directory_of, options, with_quality=False):
        """Measures one case; None where it was not asked for."""
        args = self.args
        if args.only not in name:
            return None
        directory = directory_of()
        with tempfile.TemporaryDirectory(dir=self.model.parent) as scratch:
            output = pathlib.Path(scratch) / "quantized"
            command = [args.nibble, *options, *self.calib_text, "--output", output, "--overwrite", directory]
            runs, floors = [], []
            for _ in range(args.runs):
                runs.append(measure(command))
                report = json.loads((output / "quantization_report.json").read_text())
                floors.append(report["phases"][-1]["ideal_seconds"])
            wall, cpu, peak = (statistics.median(figures) for figures in zip(*runs))
            row = {"case": name, "runs": args.runs, "seconds": wall, "spread": max(runs)[0] - min(runs)[0], "cpu_seconds": cpu,
                   "floor_seconds": statistics.median(floors),
                   "ratio": statistics.median(run[0] / floor for run, floor in zip(runs, floors)), "peak_bytes": peak}
            quality = ""
            if with_quality:
                evaluate = [args.nibble, "eval", output, "--reference", directory, *self.eval_text, "--json"]
                measured = json.loads(subprocess.run([str(part) for part in evaluate], check=True, stdout=subprocess.PIPE).stdout)
                row |= {"perplexity": measured["perplexity"], "kl_divergence": measured["kl_divergence"]}
                quality = f" {row['perplexity']:10.3f} {row['kl_divergence']:8.4f}"
        print(f"{name:44} {wall:8.1f} {row['spread']:7.1f} {cpu:8.1f} {row['floor_seconds']:7.1f} {row['ratio']:6.2f} "
              f"{peak / 2**20:6.0f} MiB{quality}", flush=True)
        if args.json:
            with open(args.json, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        return row

    def experts(self, method):
        """Experts, and the dense model with as many active weights: how much more memory a mixture takes."""
        rows = []
        for what, options in MIXTURE.items():
            name = f"random {what}, {method}"
            run = [*SYNTHETIC_OPTIONS[method], *calibration(32, 512)]
            rows.append(self.case(name, lambda options=options: synthetic(1024, 2, self.model, *options), run))
        if None not in rows:
            dense, mixture = (row["peak_bytes"] for row in rows)
            print(f"  peak RAM of the mixture is {mixture / dense:.2f} times that of the dense model", flush=True)

    def random(self, shape, method):
        """A case on a random model."""
        hidden, layers, windows, seq_len = shape
        name = f"random {hidden}x{layers}, {windows}x{seq_len}, {method}"
        options = [*SYNTHETIC_OPTIONS[method], *calibration(windows, seq_len)]
        return self.case(name, lambda: synthetic(hidden, layers, self.model), options)


def print_line(what, sizes, rows):
    """The least-squares line through the seconds of `rows`, and how much the peak memory differs."""
    if None in rows:
        return
    seconds = [row["seconds"] for row in rows]
    slope, start = numpy.polyfit(sizes, seconds, 1)
    fit = numpy.corrcoef(sizes, seconds)[0, 1] ** 2
    peaks = [row["peak_bytes"] for row in rows]
    print(f"  {start:.2f} s + {slope:.4g} s a {what} (R² {fit:.4f}); peak RAM differs by {max(peaks) / min(peaks) - 1:.1%}",
          flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--nibble", default="target/release/nibble", type=pathlib.Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="only the cases whose name contains this")
    parser.add_argument("--json", type=pathlib.Path, help="append one JSON line per case to this file")
    bench = Bench(parser.parse_args())

    for name, options in QUANTIZATIONS.items():
        bench.case(f"{bench.model.name}, {name}", lambda: bench.model, [*options, *CALIBRATION], with_quality=True)
    for method in SYNTHETIC_OPTIONS:
        bench.random(BILLION, method)
    for method in SYNTHETIC_OPTIONS:
        bench.experts(method)
        print_line("layer", [shape[1] for shape in LAYER_SERIES], [bench.random(shape, method) for shape in LAYER_SERIES])
        tokens = [shape[2] * shape[3] for shape in TOKEN_SERIES]
        print_line("token", tokens, [bench.random(shape, method) for shape in TOKEN_SERIES])


if __name__ == "__main__":
    main()
