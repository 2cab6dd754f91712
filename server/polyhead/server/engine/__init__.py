"""Engines turn requests into batches: `generator` for decoders (continuous batching), `encoder` for classify and embed."""
