"""trtexec: command lines with realistic inputs for each version of TensorRT, and its JSON read back."""
