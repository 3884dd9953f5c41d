"""Golden windows of token ids: tests/golden/calibration/{tokenizer.json, text.txt, windows.json}.

usage: python calibration.py        (tokenizers 0.23.3; no randomness)

Trains a byte-level BPE tokenizer with GPT-2's pre-tokenizer, which merges runs of white space according to what
follows, and a post-processor that adds <bos>. The windows are cut from the ids of the whole text.
"""
import json
import pathlib

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

OUT = pathlib.Path(__file__).parent.parent / "calibration"
SEQ_LEN, NUM_SAMPLES = 64, 40
VERSE = """The tide came in at a quarter past four,   and with it the boats.

\tRemember: 3.14159 is not 22/7, and «Grüße» aren't "greetings"...

  Das Öl, das Übel, die Äpfel; l'été où j'ai vu la mer; ¿qué hora es?
夜深了，风停了。海はまだ眠っている。 Снег идёт второй день.\r\n

if x[i] != y[j]:\n        return None  # ---- 🦀🦀 ----

"""


def main():
    # Numbered, so that no two stretches are alike; each number of blank lines occurs.
    text = "".join(f"{n}. {VERSE}" + "\n" * (n % 4) for n in range(220))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])

    OUT.mkdir(exist_ok=True)
    tokenizer.save(str(OUT / "tokenizer.json"), pretty=False)
    (OUT / "text.txt").write_bytes(text.encode())
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    body = SEQ_LEN - 1
    windows = [[0] + ids[i * body : (i + 1) * body] for i in range(NUM_SAMPLES)]
    (OUT / "windows.json").write_text(json.dumps({"seq_len": SEQ_LEN, "windows": windows}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
