"""Quantize a model directory with GPTQModel on the CPU.

usage: with_gptqmodel.py gptq MODEL_DIR OUT_DIR --text FILE --windows N --seq-len N --group-size N
"""
import os
import sys

import job

# With two cores GPTQModel 7.7.0 makes one worker thread, then asks for two and fails.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
# It compiles its packing code at the first run: that needs the environment's ninja, and stays in the environment.
os.environ["PATH"] = f"{sys.prefix}/bin:{os.environ['PATH']}"
os.environ.setdefault("GPTQMODEL_TORCH_EXTENSIONS_DIR", f"{sys.prefix}/kernels")


def main():
    args = job.parse_arguments(__doc__, ["gptq"])
    from gptqmodel import GPTQModel, QuantizeConfig

    model = GPTQModel.load(str(args.model), QuantizeConfig(bits=job.BITS, group_size=args.group_size), device="cpu")
    model.quantize(job.samples(args), batch_size=1)
    model.save(str(args.output))
    job.copy_tokenizer(args)


if __name__ == "__main__":
    main()
