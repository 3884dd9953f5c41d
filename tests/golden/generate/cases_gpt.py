"""Cases of logits.py: families from before Llama."""

GPT = {"vocab_size": 64, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}
FALCON = {
    "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2,
}


def family(model_type, architecture, base, **changes):
    return base | {"model_type": model_type, "architectures": [architecture]} | changes


def falcon(**changes):
    return family("falcon", "FalconForCausalLM", FALCON, **changes)


CASES = {
    "bloom": family(
        "bloom", "BloomForCausalLM", {"vocab_size": 64, "hidden_size": 48, "n_layer": 2, "n_head": 6, "pad_token_id": 0}),
    "codegen": family("codegen", "CodeGenForCausalLM", GPT, n_head=8, rotary_dim=4, tie_word_embeddings=False),
    "falcon": falcon(),
    "falcon_alibi": falcon(alibi=True, parallel_attn=False, bias=True, multi_query=False),
    "falcon_grouped": falcon(new_decoder_architecture=True, num_kv_heads=2, tie_word_embeddings=False, ffn_hidden_size=96),
    "falcon_grouped_one_norm": falcon(
        new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1),
    "gpt2": family("gpt2", "GPT2LMHeadModel", GPT),
    "gpt2_wide": family("gpt2", "GPT2LMHeadModel", GPT, n_inner=72, tie_word_embeddings=False, activation_function="gelu"),
    "gpt_bigcode": family("gpt_bigcode", "GPTBigCodeForCausalLM", GPT),
    "gpt_bigcode_heads": family("gpt_bigcode", "GPTBigCodeForCausalLM", GPT, multi_query=False),
    "gptj": family("gptj", "GPTJForCausalLM", GPT, rotary_dim=8, tie_word_embeddings=False),
    "mpt": family(
        "mpt", "MptForCausalLM", {"vocab_size": 64, "d_model": 48, "n_layers": 2, "n_heads": 6, "max_seq_len": 64},
        attn_config={"clip_qkv": 1.5}),
    "opt": family(
        "opt", "OPTForCausalLM",
        {"vocab_size": 64, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 72,
         "max_position_embeddings": 64, "word_embed_proj_dim": 48, "pad_token_id": 1}),
}
