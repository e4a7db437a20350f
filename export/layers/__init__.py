"""The building blocks that towers, projectors and decoders share."""
