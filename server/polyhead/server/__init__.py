"""The Polyhead server: names, bundles, engines and the gRPC service around them. No torch, no transformers, ever."""
