"""The only code that touches onnxruntime: sessions, their threads, and the memory that graphs run on."""
