"""The gRPC contract and the bundle manifest, generated from the .proto files beside (`make protos`)."""
