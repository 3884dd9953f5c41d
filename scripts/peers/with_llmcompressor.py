"""Quantize a model directory with LLM Compressor on the CPU.

usage: with_llmcompressor.py gptq|awq MODEL_DIR OUT_DIR --text FILE --windows N --seq-len N --group-size N
"""
import job


def recipe(method, group_size):
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    weights = {"num_bits": job.BITS, "type": "int", "symmetric": method == "gptq", "strategy": "group",
               "group_size": group_size}
    scheme = {"ignore": ["lm_head"], "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
    return [GPTQModifier(**scheme)] if method == "gptq" else [AWQModifier(), QuantizationModifier(**scheme)]


def main():
    args = job.parse_arguments(__doc__, ["gptq", "awq"])
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.pipelines.cache import IntermediatesCache
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # AWQ of 0.14.0.1 pins memory for copies to a GPU, which fails where there is none.
    IntermediatesCache.pin_memory = lambda cache, batch_index, input_names=None: None

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto")
    oneshot(model=model, processor=AutoTokenizer.from_pretrained(args.model), dataset=Dataset.from_list(job.samples(args)),
            recipe=recipe(args.method, args.group_size), max_seq_length=args.seq_len, num_calibration_samples=args.windows)
    model.save_pretrained(args.output, save_compressed=True)
    job.copy_tokenizer(args)


if __name__ == "__main__":
    main()
