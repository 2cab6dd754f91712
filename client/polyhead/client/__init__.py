"""The Polyhead client."""
