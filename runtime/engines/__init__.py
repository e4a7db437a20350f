"""TensorRT engines of a bundle: built on the device that runs them, stored beside the graphs, checked before use."""
