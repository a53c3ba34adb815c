"""Out of jseg: ONNX files, and MMSegmentation checkpoints.

`sizes`, `graph`, `framework`, `operators`, `tables` and `scope` are the tracer: a model's own code runs once on tensors
that note ONNX nodes (`graph.Tensor`) and on sizes that may be unknown (`sizes.Size`). `onnx_model` makes a file of it,
`verify` compares the file with the model, `exported` runs such a file as a segmentor; `quantize` makes an int8 file of
it (`int8`: onnxruntime's quantisation and what each layer costs; `layers`: the nodes with weights and their names).
"""
