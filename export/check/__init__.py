"""``python -m export check``: whether a target's TensorRT lists what a bundle's graphs use, and whether it fits."""
