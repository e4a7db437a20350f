"""Images to pixels, questions to ids: as the checkpoint's own processor does it, for export and runtime alike."""
