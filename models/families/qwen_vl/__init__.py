"""What the families of Qwen2.5-VL and Qwen3-VL share: a vision tower for images of any size, and its merger."""
