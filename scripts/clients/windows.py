"""The text windows that `nibble eval` measures: the tokens of one text as a stream, cut without overlap or special tokens."""
import json
import pathlib


def token_windows(directory, text, n_windows, seq_len):
    """`n_windows` lists of `seq_len` token ids, with the tokenizer of the model in `directory`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(pathlib.Path(directory) / "tokenizer.json"))
    ids = tokenizer.encode(pathlib.Path(text).read_text(encoding="utf-8"), add_special_tokens=False).ids
    assert len(ids) >= n_windows * seq_len, f"{text} has {len(ids)} tokens, fewer than {n_windows} x {seq_len}"
    return [ids[i * seq_len:(i + 1) * seq_len] for i in range(n_windows)]


def parse_arguments(description):
    """The options that every client's script takes."""
    import argparse

    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("directory")
    parser.add_argument("--text", required=True)
    parser.add_argument("--windows", type=int, required=True)
    parser.add_argument("--seq-len", type=int, required=True)
    return parser.parse_args()


def print_result(**result):
    """The last line of a client's script."""
    print(json.dumps(result), flush=True)
