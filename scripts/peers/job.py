"""What the runners of the other quantizers share: one job's options, and the calibration windows that Nibble takes too.

Each runner is one whole process that loads a model, quantizes its linears to 4 bits and saves it, as a user of that
program would with its own defaults: order of columns, damping, search. Only what the comparison fixes is set: bits, group
size, windows. What is worked around, because the program would not run on a CPU without it, is said beside it.
"""
import argparse
import os
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "clients"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

BITS = 4


def parse_arguments(description, methods):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("method", choices=methods)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--windows", type=int, required=True)
    parser.add_argument("--seq-len", type=int, required=True)
    parser.add_argument("--group-size", type=int, required=True)
    args = parser.parse_args()
    args.model, args.output, args.text = args.model.resolve(), args.output.resolve(), args.text.resolve()
    # Some of these programs write logs to where they run.
    args.output.mkdir(parents=True, exist_ok=True)
    os.chdir(args.output)
    return args


def token_windows(args):
    from windows import token_windows

    return token_windows(args.model, args.text, args.windows, args.seq_len)


def samples(args):
    """The windows as transformers' tokenizers give them."""
    return [{"input_ids": window, "attention_mask": [1] * len(window)} for window in token_windows(args)]


def copy_tokenizer(args):
    for path in args.model.glob("tokenizer*"):
        shutil.copy(path, args.output)
