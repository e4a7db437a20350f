"""The GPU kernel of the selectors: built here, loaded by the runtime as a TensorRT plugin, usable from PyTorch."""
