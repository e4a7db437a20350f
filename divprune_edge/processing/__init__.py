"""Images to pixels, questions to ids, ids to text: as the checkpoint's own processor does it."""
