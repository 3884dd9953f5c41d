#!/usr/bin/env python3
"""Measure `nibble` side by side with other quantizers: the same job as whole processes, in one run on one machine.

usage: compare.py [--nibble PROGRAM] [--runs N] [--only SUBSTRING] [--text FILE] [--json FILE] [--keep DIR]
                  [--synthetic HIDDEN LAYERS WINDOWS LENGTH] MODEL_DIR        (--synthetic needs numpy, as does the warm-up)

The jobs are GPTQ and AWQ with 4 bits and groups of 64, on 64 windows of 512 tokens of one text, the same for all. What is
not fixed by that is each program's own default (peers/job.py). A process counts from its start to its end: importing,
loading and saving are in it. Every program first does the job on a tiny model, unmeasured, so that what it compiles once is
not counted. The runs take turns; figures are medians, the spread (largest minus smallest) stands beside the seconds. Peak
memory is the resident memory of the largest process, and each of these programs is one.

With --synthetic the model is a random Llama of that size (with MODEL_DIR's tokenizer) on that many windows: to compare
memory with. Nothing uses a GPU. Each peer is set up in an environment of its own (venv.sh): several GB, once.
"""
import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

import bench

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
GROUP_SIZE = 64
CALIBRATION = (64, 512)
# Job -> nibble's options for it, and the peers that do it.
JOBS = {
    "gptq": (["--gptq", "--bits", "4"], ["gptqmodel", "llmcompressor"]),
    "awq": (["--awq"], ["llmcompressor", "autoawq"]),
}
TINY = (256, 2)
TINY_CALIBRATION = (2, 64)


def python_of(peer):
    made = subprocess.run([HERE / "venv.sh", peer], check=True, stdout=subprocess.PIPE, text=True)
    return ROOT / made.stdout.strip()


def command(args, job, program, model, output, calibration):
    windows, length = map(str, calibration)
    if program == "nibble":
        return [args.nibble, *JOBS[job][0], "--force-cpu", "--group-size", str(GROUP_SIZE), "--num-samples", windows,
                "--seq-len", length, "--calib-data", args.text, "--output", output, "--overwrite", model]
    return [python_of(program), HERE / "peers" / f"with_{program}.py", job, model, output, "--text", args.text, "--windows",
            windows, "--seq-len", length, "--group-size", str(GROUP_SIZE)]


def run(args, job, program, model, calibration):
    """Wall seconds, CPU seconds and peak bytes of one run, or None where the program failed (its words are on stderr)."""
    print(f"compare: {job} by {program} on {model.name}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=args.model.parent) as scratch:
        output = pathlib.Path(scratch) / "quantized"
        try:
            measured = bench.measure(command(args, job, program, model, output, calibration))
        except SystemExit as failure:
            print(f"compare: {job} by {program} FAILED: {failure}", file=sys.stderr, flush=True)
            return None
        if args.keep:
            shutil.copytree(output, args.keep / f"{model.name}-{job}-{program}", dirs_exist_ok=True)
    return measured


def compare(args, job, programs, tiny, model, calibration):
    """Prints the job's rows; returns whether all programs did it."""
    runs = {program: [] for program in programs if run(args, job, program, tiny, TINY_CALIBRATION)}
    for _ in range(args.runs):
        for program in list(runs):
            measured = run(args, job, program, model, calibration)
            if measured is None:
                del runs[program]
            else:
                runs[program].append(measured)

    nibble = None
    for program in programs:
        if program not in runs:
            print(f"{job:5} {program:14} {'FAILED':>9}", flush=True)
            continue
        medians = [statistics.median(figures) for figures in zip(*runs[program])]
        seconds = [measured[0] for measured in runs[program]]
        row = {"job": job, "program": program, "model": model.name, "windows": calibration[0], "seq_len": calibration[1],
               "runs": args.runs, "seconds": medians[0], "spread": max(seconds) - min(seconds), "cpu_seconds": medians[1],
               "peak_bytes": medians[2]}
        if program == "nibble":
            nibble = medians
        ratios = [figure / own for figure, own in zip(medians, nibble)] if nibble else []
        row |= dict(zip(("seconds_ratio", "cpu_ratio", "peak_ratio"), ratios))
        print(f"{job:5} {program:14} {row['seconds']:9.1f} {row['spread']:7.1f} {row['cpu_seconds']:9.1f} "
              f"{row['peak_bytes'] / 2**20:7.0f} MiB " + "".join(f" {ratio:7.2f}x" for ratio in ratios), flush=True)
        if args.json:
            with open(args.json, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    return len(runs) == len(programs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--nibble", default=ROOT / "target/release/nibble", type=pathlib.Path)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--only", default="", metavar="SUBSTRING", help='only the peers with this in "JOB PEER", and nibble')
    parser.add_argument("--text", default=ROOT.parent / "shared/data/wiki_calib.txt", type=pathlib.Path)
    parser.add_argument("--json", type=pathlib.Path, help="append one JSON line per row to this file")
    parser.add_argument("--keep", type=pathlib.Path, metavar="DIR", help="leave what each program wrote there")
    parser.add_argument("--synthetic", type=int, nargs=4, metavar=("HIDDEN", "LAYERS", "WINDOWS", "LENGTH"))
    args = parser.parse_args()
    if not args.text.exists():
        print(f"compare: SKIPPED, nothing was measured: {args.text} is missing; name a text with --text", file=sys.stderr)
        return
    jobs = {job: [peer for peer in peers if args.only in f"{job} {peer}"] for job, (_, peers) in JOBS.items()}
    if not any(jobs.values()):
        raise SystemExit(f"compare: no job and peer contains {args.only!r}")

    args.model = model = args.model.resolve()
    calibration = CALIBRATION
    tiny = bench.synthetic(*TINY, model)
    if args.synthetic:
        model, calibration = bench.synthetic(*args.synthetic[:2], model), args.synthetic[2:]
    for peer in sorted({peer for peers in jobs.values() for peer in peers}):
        python_of(peer)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # The peers have packages of their own, and would compile them anew in each run.
    for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE"):
        os.environ.pop(name, None)
    print(f"{model.name}, 4 bits, groups of {GROUP_SIZE}, {calibration[0]} windows of {calibration[1]} tokens")
    print(f"{'job':5} {'program':14} {'seconds':>9} {'spread':>7} {'CPU s':>9} {'peak RAM':>11}  as multiples of nibble's",
          flush=True)
    results = [compare(args, job, ["nibble", *peers], tiny, model, calibration) for job, peers in jobs.items() if peers]
    if not all(results):
        raise SystemExit("compare: a program failed; its last words are above")


if __name__ == "__main__":
    main()
