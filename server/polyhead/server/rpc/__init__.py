"""The gRPC side: servicers convert, call and convert; interceptors give errors their status and count."""
