"""Quantize a model directory with AutoAWQ on the CPU.

usage: with_autoawq.py awq MODEL_DIR OUT_DIR --text FILE --windows N --seq-len N --group-size N
"""
import job


def keep_original_weights(torch, quantizer):
    """Make the scale search restore the model's weights after each try.

    It keeps them with `.cpu()`, which copies nothing on a CPU: the tries then scale the kept weights too, and what is
    written is noise.
    """
    search = quantizer._compute_best_scale

    def search_on_copies(*args, **kwargs):
        cpu = torch.Tensor.cpu
        torch.Tensor.cpu = torch.Tensor.clone
        try:
            return search(*args, **kwargs)
        finally:
            torch.Tensor.cpu = cpu

    quantizer._compute_best_scale = search_on_copies


def main():
    args = job.parse_arguments(__doc__, ["awq"])
    import torch
    from awq import AutoAWQForCausalLM
    from awq.quantize.quantizer import AwqQuantizer

    keep_original_weights(torch, AwqQuantizer)
    # bfloat16, because float16, its default, is slower on a CPU.
    model = AutoAWQForCausalLM.from_pretrained(str(args.model), device_map="cpu", torch_dtype=torch.bfloat16)
    model.quantize(tokenizer=None, calib_data=job.token_windows(args), max_calib_samples=args.windows,
                   max_calib_seq_len=args.seq_len,
                   quant_config={"zero_point": True, "q_group_size": args.group_size, "w_bit": job.BITS, "version": "GEMM"})
    model.save_quantized(str(args.output))
    job.copy_tokenizer(args)


if __name__ == "__main__":
    main()
