"""A bundle for NVIDIA's Triton Inference Server: a model repository of its graphs, and what answers over them there."""
