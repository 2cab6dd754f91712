"""Models that read a source and then write an answer: the road from one fixed vector to attention alone.

`RNNSeq2Seq` is the recurrent encoder-decoder (Cho et al. 2014, Sutskever et al. 2014), with attention if told so (Bahdanau
et al. 2014, Luong et al. 2015); `TransformerSeq2Seq` is that of Vaswani et al. 2017. Both have `encode`, `step` and
`forward`, and write answers through `decoder(...)`, a token a call.
"""

from polyhead.models.seq2seq.decoding import Decoder
from polyhead.models.seq2seq.results import Encoded, Output, Step
from polyhead.models.seq2seq.rnn import RNNSeq2Seq
from polyhead.models.seq2seq.rnn_config import RNNSeq2SeqConfig
from polyhead.models.seq2seq.transformer import TransformerSeq2Seq
from polyhead.models.seq2seq.transformer_config import TransformerSeq2SeqConfig

__all__ = [
    "Decoder",
    "Encoded",
    "Output",
    "RNNSeq2Seq",
    "RNNSeq2SeqConfig",
    "Step",
    "TransformerSeq2Seq",
    "TransformerSeq2SeqConfig",
]
