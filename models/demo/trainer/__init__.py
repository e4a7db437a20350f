"""What made the demo checkpoint and its picture, and measures it: needs torch and a clone, and is in no wheel."""
