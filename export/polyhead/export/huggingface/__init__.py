"""Checkpoints in Hugging Face layout, as export takes them. Only these modules import transformers, and only when called.

`architectures` knows what is supported, `folder` reads and checks what lies beside the weights, `load` makes models of them,
`decoder` and `encoder` put attention nodes where transformers calls its attention function, `importer` brings all together.
"""
