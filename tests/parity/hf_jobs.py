"""Which releases of Hugging Face `hf.py` compares: one job for each kind, small ones and the published sizes.

A job: `model` and `processor`, classes of transformers; `config`, words of the model's config class; `processing`,
words of the processor; `size`, (height, width) of the picture in pixels; `probs`, values of EoMT's `attn_mask_probs`,
1 where they are not said; `train`: compare a training step too, in which `attn_mask_probs` are these, or true.
"""

from __future__ import annotations

__all__ = ["JOBS"]

_SMALL_SWIN = {"model_type": "swin", "image_size": 64, "embed_dim": 12, "depths": [2, 2, 2, 1],
               "num_heads": [1, 2, 3, 4], "window_size": 5, "out_features": ["stage1", "stage2", "stage3", "stage4"]}
_SWIN_TINY = {"model_type": "swin", "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24],
              "window_size": 7, "out_features": ["stage1", "stage2", "stage3", "stage4"]}
_SMALL_NEXT = {"model_type": "convnext", "depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32],
               "out_features": ["stage1", "stage2", "stage3", "stage4"]}
_NEXT_TINY = {"model_type": "convnext", "depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768],
              "out_features": ["stage1", "stage2", "stage3", "stage4"]}
_SQUARE, _EDGES = {"size": {"height": 96, "width": 128}}, {"size": {"shortest_edge": 96, "longest_edge": 160}}
_MIDDLE = {"size": {"height": 224, "width": 288}}  # whole networks on pictures smaller than the published 512 x 512
_SMALL_DECODER = {"model_type": "detr", "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 2,
                  "decoder_ffn_dim": 48, "num_queries": 9, "encoder_layers": 1, "use_pretrained_backbone": False}
_SMALL_MASKS = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 2,
                "encoder_layers": 2, "decoder_layers": 5, "encoder_feedforward_dim": 48, "dim_feedforward": 40,
                "num_queries": 9}
_SMALL_BEIT = {"hidden_size": 24, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 48,
               "image_size": 96, "use_relative_position_bias": True, "out_indices": [3, 4, 5, 6],
               "auxiliary_channels": 16}
_SMALL_DPT = {"hidden_size": 24, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 48,
              "image_size": 64, "backbone_out_indices": [1, 2, 4, 5], "neck_hidden_sizes": [8, 16, 16, 24],
              "fusion_hidden_size": 16}
_SMALL_EOMT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 64,
               "patch_size": 8, "num_blocks": 2, "num_upscale_blocks": 1, "num_queries": 9, "num_register_tokens": 2,
               "train_num_points": 400}
_SMALL_EOMT3 = {**{key: value for key, value in _SMALL_EOMT.items() if key != "mlp_ratio"}, "intermediate_size": 64,
                "pos_embed_rescale": None}
_WINDOWS = {"do_split_image": True, "size": {"shortest_edge": 64, "longest_edge": None}}

JOBS = {
    "segformer-small": {"model": "SegformerForSemanticSegmentation", "processor": "SegformerImageProcessor",
                        "config": {"depths": [1, 2, 1, 1], "hidden_sizes": [8, 16, 24, 32],
                                   "num_attention_heads": [1, 2, 3, 4], "decoder_hidden_size": 20},
                        "processing": _SQUARE},
    "segformer-b0": {"model": "SegformerForSemanticSegmentation", "processor": "SegformerImageProcessor",
                     "config": {}, "classes": 150},
    "upernet-swin-small": {"model": "UperNetForSemanticSegmentation", "processor": "SegformerImageProcessor",
                           "config": {"backbone_config": _SMALL_SWIN, "hidden_size": 16, "auxiliary_channels": 12},
                           "processing": _SQUARE, "shard": "20KB"},
    "upernet-swin-tiny": {"model": "UperNetForSemanticSegmentation", "processor": "SegformerImageProcessor",
                          "config": {"backbone_config": _SWIN_TINY}, "classes": 150, "processing": _MIDDLE},
    "upernet-convnext-small": {"model": "UperNetForSemanticSegmentation", "processor": "SegformerImageProcessor",
                               "config": {"backbone_config": _SMALL_NEXT, "hidden_size": 16,
                                          "auxiliary_concat_input": True, "auxiliary_num_convs": 2},
                               "processing": _SQUARE, "format": "bin"},
    "upernet-convnext-tiny": {"model": "UperNetForSemanticSegmentation", "processor": "SegformerImageProcessor",
                              "config": {"backbone_config": _NEXT_TINY}, "classes": 150, "processing": _MIDDLE},
    "mask2former-swin-small": {"model": "Mask2FormerForUniversalSegmentation",
                               "processor": "Mask2FormerImageProcessor",
                               "config": {"backbone_config": _SMALL_SWIN, **_SMALL_MASKS}, "processing": _EDGES},
    "mask2former-swin-tiny": {"model": "Mask2FormerForUniversalSegmentation",
                              "processor": "Mask2FormerImageProcessor",
                              "config": {"backbone_config": _SWIN_TINY}, "classes": 150,
                              "processing": {"size": {"shortest_edge": 256, "longest_edge": 2048}}},
    "maskformer-swin-small": {"model": "MaskFormerForInstanceSegmentation", "processor": "MaskFormerImageProcessor",
                              "config": {"backbone_config": _SMALL_SWIN, "decoder_config": _SMALL_DECODER,
                                         "fpn_feature_size": 32, "mask_feature_size": 32}, "processing": _EDGES},
    "maskformer-swin-tiny": {"model": "MaskFormerForInstanceSegmentation", "processor": "MaskFormerImageProcessor",
                             "config": {"backbone_config": _SWIN_TINY}, "classes": 150,
                             "processing": {"size": {"shortest_edge": 512, "longest_edge": 2048}}},
    "beit-small": {"model": "BeitForSemanticSegmentation", "processor": "BeitImageProcessor", "config": _SMALL_BEIT,
                   "processing": {"size": {"height": 96, "width": 96}, "do_center_crop": False}},
    "beit-base": {"model": "BeitForSemanticSegmentation", "processor": "BeitImageProcessor",
                  "config": {"image_size": 224, "use_relative_position_bias": True, "out_indices": [3, 5, 7, 11]},
                  "classes": 150, "processing": {"size": {"height": 224, "width": 224}, "do_center_crop": False}},
    "dpt-small": {"model": "DPTForSemanticSegmentation", "processor": "DPTImageProcessor", "config": _SMALL_DPT,
                  "processing": {"size": {"height": 96, "width": 96}}},
    "dpt-small-batch-norm": {"model": "DPTForSemanticSegmentation", "processor": "DPTImageProcessor",
                             "config": {**_SMALL_DPT, "use_batch_norm_in_fusion_residual": True,
                                        "readout_type": "add"},
                             "processing": {"size": {"height": 64, "width": 64}, "keep_aspect_ratio": False}},
    "dpt-base": {"model": "DPTForSemanticSegmentation", "processor": "DPTImageProcessor",
                 "config": {"use_batch_norm_in_fusion_residual": True}, "classes": 150,
                 "processing": {"size": {"height": 192, "width": 192}}},
    "eomt-small": {"model": "EomtForUniversalSegmentation", "processor": "EomtImageProcessorPil",
                   "config": _SMALL_EOMT, "processing": _WINDOWS, "train": True},
    "eomt-small-annealed": {"model": "EomtForUniversalSegmentation", "processor": "EomtImageProcessorPil",
                            "config": {**_SMALL_EOMT, "num_register_tokens": 0}, "probs": [0.0, 0.0], "size": [211, 96],
                            "processing": _WINDOWS},
    "eomt-small-annealing": {"model": "EomtForUniversalSegmentation", "processor": "EomtImageProcessorPil",
                             "config": _SMALL_EOMT, "probs": [0.0, 0.0], "size": [80, 80], "processing": _WINDOWS,
                             "train": [0.0, 0.5]},
    "eomt-dinov3-small": {"model": "EomtDinov3ForUniversalSegmentation", "processor": "EomtImageProcessorPil",
                          "config": _SMALL_EOMT3, "processing": _WINDOWS, "train": True,
                          "seed": 77},  # rounding moves no cell across the edge of a mask
    "eomt-dinov2-s": {"model": "EomtForUniversalSegmentation", "processor": "EomtImageProcessorPil",
                      "config": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6,
                                 "image_size": 256, "num_blocks": 3, "num_queries": 100}, "classes": 150,
                      "processing": {**_WINDOWS, "size": {"shortest_edge": 256, "longest_edge": None}},
                      "probs": [0.0] * 3},
}
for _seed, (_name, _job) in enumerate(JOBS.items()):
    _job.update(name=_name, seed=_job.get("seed", _seed), classes=[f"thing {i}" for i in range(_job.get("classes", 7))],
                size=_job.get("size", [113, 170] if "small" in _name else [360, 480]))
