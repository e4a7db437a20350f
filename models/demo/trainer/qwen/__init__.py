"""What made the demo checkpoint of Qwen3-VL's architecture: the other one's scenes and recipe, another network."""
