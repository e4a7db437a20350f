"""The server: bundles over HTTP, as OpenAI's clients ask. Nothing else in the runtime imports it; extra ``[serve]``."""
