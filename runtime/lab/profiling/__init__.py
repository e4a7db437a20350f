"""Where an answer's time goes: stages measured, set beside their rooflines, and what pruning can and does save."""
