"""Text encoders: names of classes become vectors that pictures are compared with."""
