"""llama.cpp through llama-cpp-python on the language model alone, in its own block formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.engines.engine import Clock, Engine, SpeedJob, Times, decode_ms, text_ids

_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def prepare(language: Path, file: Path, kind: str) -> None:
    """Write a GGUF file of a Hugging Face Llama: matrices in ``kind`` (Q4_0, Q8_0), the output head in Q8_0.

    Weights are random: the order of the rotary pairs, which a real conversion permutes, does not matter here.
    """
    import gguf
    import numpy as np
    from safetensors import safe_open

    config = json.loads((language / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("llama")
    writer.add_add_space_prefix(False)  # there is no token for it
    tokens = ["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(3, config["vocab_size"]))]
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3, *([1] * (len(tokens) - 3))])
    with safe_open(language / "model.safetensors", framework="numpy") as weights:
        for name in weights.keys():  # noqa: SIM118 - not a mapping
            tensor = weights.get_tensor(name).astype(np.float32)
            target, head = _target(name)
            if tensor.ndim == 1:
                writer.add_tensor(target, tensor)
                continue
            wanted = gguf.GGMLQuantizationType[("Q8_0" if head else kind)]
            packed: Any = gguf.quants.quantize(tensor, wanted)
            writer.add_tensor(target, packed, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _target(name: str) -> tuple[str, bool]:
    if name == "lm_head.weight":
        return "output.weight", True
    if name == "model.embed_tokens.weight":
        return "token_embd.weight", False
    if name == "model.norm.weight":
        return "output_norm.weight", False
    _, _, index, rest = name.split(".", maxsplit=3)
    return f"blk.{index}.{_LAYER[rest.removesuffix('.weight')]}.weight", False


def open_engine(job: SpeedJob) -> Engine:
    """Load a GGUF file."""
    return LlamaCpp(job)


class LlamaCpp:
    """One context, the job's number of threads for prefill and decode, a batch that takes any prompt at once."""

    def __init__(self, job: SpeedJob) -> None:
        import llama_cpp

        self._llama_cpp, self._job = llama_cpp, job
        self._model = llama_cpp.Llama(
            job.folder,
            n_ctx=job.text + job.all_visual + job.decode + 8,
            n_batch=1024,
            n_ubatch=1024,
            n_threads=job.threads,
            n_threads_batch=job.threads,
            verbose=False,
        )

    def versions(self) -> dict[str, str]:
        """See :class:`bench.engines.engine.Engine`."""
        info = self._llama_cpp.llama_print_system_info().decode()
        return {"llama-cpp-python": self._llama_cpp.__version__, "built with": info.strip()}

    def measure(self, visual: int) -> Times:
        """Prefill as many text ids, then decode."""
        job, model = self._job, self._model
        ids = text_ids(job, job.text + visual).tolist()
        model.reset()
        clock = Clock()
        model.eval(ids)
        prefill = clock.lap()
        return {"prefill": prefill, "decode": decode_ms(job, lambda token: model.eval([token]))}
