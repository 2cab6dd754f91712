"""Models that read a source and then write an answer: their two graphs, and torch against them."""
