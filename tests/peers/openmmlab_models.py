"""Models: what of OpenMMLab's packages is initialized on both sides, each as its package's own config would ask for it.

Default classes and default arguments, the smallest architecture where a family has several, so that the whole list
takes half a minute a side. What a config leaves out is the class's own default, its `init_cfg` above all.
"""

from __future__ import annotations

from typing import Any

from tests.peers.openmmlab import CHECKPOINT, Case

_BACKBONES: dict[str, dict[str, Any]] = {
    "alexnet": {"type": "AlexNet"},
    "beit": {"type": "BEiTViT", "arch": "deit-tiny"},
    "conformer": {"type": "Conformer", "arch": "tiny"},
    "convmixer": {"type": "ConvMixer", "arch": "768/32"},
    "convnext": {"type": "ConvNeXt", "arch": "atto"},
    "cspdarknet": {"type": "CSPDarkNet", "depth": 53},
    "cspresnet": {"type": "CSPResNet", "depth": 50},
    "davit": {"type": "DaViT", "arch": "tiny"},
    "deit": {"type": "DistilledVisionTransformer", "arch": "deit-tiny"},
    "deit3": {"type": "DeiT3", "arch": "small"},
    "densenet": {"type": "DenseNet", "arch": "121"},
    "edgenext": {"type": "EdgeNeXt", "arch": "xxsmall"},
    "efficientformer": {"type": "EfficientFormer", "arch": "l1"},
    "efficientnet": {"type": "EfficientNet", "arch": "b0"},
    "efficientnet-v2": {"type": "EfficientNetV2", "arch": "b0"},
    "eva02": {"type": "ViTEVA02", "arch": "tiny"},
    "hivit": {"type": "HiViT", "arch": "tiny"},
    "hornet": {"type": "HorNet", "arch": "tiny"},
    "hrnet": {"type": "HRNet", "arch": "w18"},
    "inception-v3": {"type": "InceptionV3"},
    "lenet": {"type": "LeNet5", "num_classes": 10},
    "levit": {"type": "LeViT", "arch": "128s"},
    "mixer": {"type": "MlpMixer", "arch": "b", "img_size": 64},
    "mixmim": {"type": "MixMIMTransformer", "arch": "base"},
    "mobilenet-v2": {"type": "MobileNetV2"},
    "mobilenet-v3": {"type": "MobileNetV3"},
    "mobileone": {"type": "MobileOne", "arch": "s0"},
    "mobilevit": {"type": "MobileViT", "arch": "xx_small"},
    "mvit": {"type": "MViT", "arch": "tiny"},
    "poolformer": {"type": "PoolFormer", "arch": "s12"},
    "regnet": {"type": "RegNet", "arch": "regnetx_400mf"},
    "replknet": {"type": "RepLKNet", "arch": {"large_kernel_sizes": [31, 29, 27, 13], "layers": [1, 1, 2, 1],
        "channels": [32, 64, 128, 256], "small_kernel": 5, "dw_ratio": 1}},
    "repmlp": {"type": "RepMLPNet", "arch": "B"},
    "repvgg": {"type": "RepVGG", "arch": "A0"},
    "res2net": {"type": "Res2Net", "depth": 50},
    "resnest": {"type": "ResNeSt", "depth": 50},
    "resnet": {"type": "ResNet", "depth": 50},
    "resnet-cifar": {"type": "ResNet_CIFAR", "depth": 18},
    "resnet-frozen": {"type": "ResNet", "depth": 18, "frozen_stages": 4, "norm_eval": True},
    "resnet-pretrained": {"type": "ResNet", "depth": 18, "init_cfg": {"type": "Pretrained", "checkpoint": CHECKPOINT}},
    "resnet-zero-init": {"type": "ResNet", "depth": 34, "zero_init_residual": True},
    "resnetv1d": {"type": "ResNetV1d", "depth": 18},
    "resnext": {"type": "ResNeXt", "depth": 50},
    "revvit": {"type": "RevVisionTransformer", "arch": "deit-tiny"},
    "riformer": {"type": "RIFormer", "arch": "s12"},
    "seresnet": {"type": "SEResNet", "depth": 50},
    "shufflenet-v1": {"type": "ShuffleNetV1"},
    "shufflenet-v2": {"type": "ShuffleNetV2"},
    "sparse-resnet": {"type": "SparseResNet", "depth": 50},
    "swin": {"type": "SwinTransformer", "arch": "tiny"},
    "swin-v2": {"type": "SwinTransformerV2", "arch": "tiny"},
    "t2t": {"type": "T2T_ViT"},
    "tinyvit": {"type": "TinyViT", "arch": "5m"},
    "tnt": {"type": "TNT", "arch": "s"},
    "twins-pcpvt": {"type": "PCPVT", "arch": "small"},
    "twins-svt": {"type": "SVT", "arch": "small"},
    "van": {"type": "VAN", "arch": "tiny"},
    "vgg": {"type": "VGG", "depth": 11, "norm_cfg": {"type": "BN"}},
    "vig": {"type": "Vig", "arch": "tiny"},
    "vit": {"type": "VisionTransformer", "arch": "deit-tiny"},
    "vit-sam": {"type": "ViTSAM", "arch": {"embed_dims": 96, "num_layers": 2, "num_heads": 4,
        "feedforward_channels": 192, "global_attn_indexes": [1]}},
    "xcit": {"type": "XCiT", "embed_dims": 128, "depth": 12, "num_heads": 4, "patch_size": 16, "tokens_norm": False},
}  # fmt: skip

_PRETRAINED_BACKBONE = {"type": "Pretrained", "checkpoint": CHECKPOINT, "prefix": "backbone."}

_CLASSIFIERS: dict[str, dict[str, Any]] = {
    "classifier-resnet": {
        "type": "ImageClassifier",
        "backbone": {"type": "ResNet", "depth": 18},
        "neck": {"type": "GlobalAveragePooling"},
        "head": {"type": "LinearClsHead", "num_classes": 10, "in_channels": 512},
    },
    "classifier-vit": {
        "type": "ImageClassifier",
        "backbone": {"type": "VisionTransformer", "arch": "deit-tiny"},
        "head": {"type": "VisionTransformerClsHead", "num_classes": 10, "in_channels": 192, "hidden_dim": 64},
        "init_cfg": [
            {"type": "TruncNormal", "layer": "Linear", "std": 0.02},
            {"type": "Constant", "layer": "LayerNorm", "val": 1.0, "bias": 0.0},
        ],
    },
    "classifier-pretrained": {
        "type": "ImageClassifier",
        "backbone": {"type": "ResNet", "depth": 18, "init_cfg": _PRETRAINED_BACKBONE},
        "neck": {"type": "GeneralizedMeanPooling"},
        "head": {"type": "LinearClsHead", "num_classes": 10, "in_channels": 512},
    },
    "head-stacked": {"type": "StackedLinearClsHead", "num_classes": 10, "in_channels": 64, "mid_channels": [32, 16]},
    "head-multi-label": {"type": "MultiLabelLinearClsHead", "num_classes": 10, "in_channels": 64},
    "head-arcface": {"type": "ArcFaceClsHead", "num_classes": 10, "in_channels": 64},
    "head-levit": {"type": "LeViTClsHead", "num_classes": 10, "in_channels": 64},
    "neck-nonlinear": {"type": "NonLinearNeck", "in_channels": 64, "hid_channels": 32, "out_channels": 16},
    "neck-mae": {"type": "MAEPretrainDecoder", "num_patches": 16, "embed_dim": 64, "decoder_embed_dim": 32,
        "decoder_depth": 2, "decoder_num_heads": 4},
    "mae": {
        "type": "MAE",
        "backbone": {"type": "MAEViT", "arch": "deit-tiny", "patch_size": 16, "mask_ratio": 0.75},
        "neck": {"type": "MAEPretrainDecoder", "embed_dim": 192, "decoder_embed_dim": 64, "decoder_depth": 2},
        "head": {"type": "MAEPretrainHead", "norm_pix": True, "patch_size": 16,
            "loss": {"type": "PixelReconstructionLoss", "criterion": "L2"}},
        "init_cfg": [
            {"type": "Xavier", "layer": "Linear", "distribution": "uniform"},
            {"type": "Constant", "layer": "LayerNorm", "val": 1.0, "bias": 0.0},
        ],
    },
}  # fmt: skip

_FPN_CHANNELS = [64, 128, 256, 512]
_ANCHORS = {"type": "AnchorGenerator", "octave_base_scale": 4, "scales_per_octave": 3, "ratios": [0.5, 1.0, 2.0],
    "strides": [8, 16, 32, 64, 128]}  # fmt: skip
_HEAD = {"num_classes": 20, "in_channels": 64, "feat_channels": 64, "stacked_convs": 2}

_DETECTION: dict[str, dict[str, Any]] = {
    "det-cspdarknet": {"type": "CSPDarknet", "deepen_factor": 0.33, "widen_factor": 0.5},
    "det-cspnext": {"type": "CSPNeXt", "deepen_factor": 0.33, "widen_factor": 0.5},
    "det-darknet": {"type": "Darknet", "depth": 53},
    "det-detectors": {"type": "DetectoRS_ResNet", "depth": 50, "conv_cfg": {"type": "ConvAWS"},
        "sac": {"type": "SAC", "use_deform": True}, "stage_with_sac": (False, True, True, True),
        "output_img": True},
    "det-dcn": {"type": "ResNet", "depth": 50, "stage_with_dcn": (False, True, True, True),
        "dcn": {"type": "DCNv2", "deform_groups": 1, "fallback_on_stride": False}},
    "det-efficientnet": {"type": "EfficientNet", "arch": "b0"},
    "det-hourglass": {"type": "HourglassNet", "num_stacks": 1},
    "det-pvt": {"type": "PyramidVisionTransformer", "num_layers": [2, 2, 2, 2]},
    "det-pvt-v2": {"type": "PyramidVisionTransformerV2", "embed_dims": 32, "num_layers": [2, 2, 2, 2]},
    "det-ssdvgg": {"type": "SSDVGG", "depth": 16, "with_last_pool": False, "ceil_mode": True,
        "out_indices": (3, 4), "out_feature_indices": (22, 34)},
    "det-swin": {"type": "SwinTransformer", "depths": (2, 2, 2, 2)},
    "det-trident": {"type": "TridentResNet", "depth": 50, "num_stages": 3, "num_branch": 3, "test_branch_idx": 1,
        "strides": (1, 2, 2), "dilations": (1, 1, 1), "trident_dilations": (1, 2, 3), "out_indices": (2,)},
    "neck-fpn": {"type": "FPN", "in_channels": _FPN_CHANNELS, "out_channels": 64, "num_outs": 5},
    "neck-pafpn": {"type": "PAFPN", "in_channels": _FPN_CHANNELS, "out_channels": 64, "num_outs": 5},
    "neck-bfp": {"type": "BFP", "in_channels": 64, "num_levels": 5, "refine_level": 2, "refine_type": "non_local"},
    "neck-channel-mapper": {"type": "ChannelMapper", "in_channels": _FPN_CHANNELS, "out_channels": 64,
        "kernel_size": 1, "act_cfg": None, "norm_cfg": {"type": "GN", "num_groups": 32}, "num_outs": 4},
    "neck-dyhead": {"type": "DyHead", "in_channels": 64, "out_channels": 64, "num_blocks": 2,
        "zero_init_offset": False},
    "neck-nasfpn": {"type": "NASFPN", "in_channels": _FPN_CHANNELS, "out_channels": 64, "num_outs": 5,
        "stack_times": 2},
    "neck-hrfpn": {"type": "HRFPN", "in_channels": _FPN_CHANNELS, "out_channels": 64},
    "neck-carafe": {"type": "FPN_CARAFE", "in_channels": _FPN_CHANNELS, "out_channels": 64, "num_outs": 5},
    "neck-yolox": {"type": "YOLOXPAFPN", "in_channels": [128, 256, 512], "out_channels": 128, "num_csp_blocks": 1},
    "neck-yolov3": {"type": "YOLOV3Neck", "num_scales": 3, "in_channels": [512, 256, 128],
        "out_channels": [256, 128, 64]},
    "neck-ssd": {"type": "SSDNeck", "in_channels": (512, 1024), "out_channels": (512, 1024, 512, 256),
        "level_strides": (2, 2), "level_paddings": (1, 1), "l2_norm_scale": 20},
    "head-retina": {"type": "RetinaHead", **_HEAD, "anchor_generator": _ANCHORS},
    "head-retina-sepbn": {"type": "RetinaSepBNHead", **_HEAD, "num_ins": 5, "anchor_generator": _ANCHORS},
    "head-fcos": {"type": "FCOSHead", **_HEAD},
    "head-atss": {"type": "ATSSHead", **_HEAD},
    "head-gfl": {"type": "GFLHead", **_HEAD, "anchor_generator": {"type": "AnchorGenerator", "ratios": [1.0],
        "octave_base_scale": 8, "scales_per_octave": 1, "strides": [8, 16, 32, 64, 128]}},
    "head-vfnet": {"type": "VFNetHead", **_HEAD},
    "head-tood": {"type": "TOODHead", **_HEAD},
    "head-fovea": {"type": "FoveaHead", **_HEAD},
    "head-reppoints": {"type": "RepPointsHead", **_HEAD, "point_feat_channels": 64},
    "head-yolox": {"type": "YOLOXHead", **_HEAD},
    "head-rtmdet": {"type": "RTMDetSepBNHead", **_HEAD, "anchor_generator": {"type": "MlvlPointGenerator",
        "offset": 0, "strides": [8, 16, 32]}, "norm_cfg": {"type": "BN"}},
    "head-ssd": {"type": "SSDHead", "num_classes": 20, "in_channels": (64, 32, 32, 32, 32, 32),
        "anchor_generator": {"type": "SSDAnchorGenerator", "scale_major": False, "input_size": 300,
            "basesize_ratio_range": (0.15, 0.9), "strides": [8, 16, 32, 64, 100, 300],
            "ratios": [[2], [2, 3], [2, 3], [2, 3], [2], [2]]}},
    "head-yolov3": {"type": "YOLOV3Head", "num_classes": 20, "in_channels": [64, 32, 16], "out_channels": [64, 32, 16]},
    "head-rpn": {"type": "RPNHead", "in_channels": 64, "feat_channels": 64},
    "head-ga-rpn": {"type": "GARPNHead", "in_channels": 64, "feat_channels": 64},
    "head-solo": {"type": "SOLOHead", **_HEAD},
    "head-solov2": {"type": "SOLOV2Head", **_HEAD, "mask_feature_head": {"feat_channels": 32, "start_level": 0,
        "end_level": 3, "out_channels": 64, "mask_stride": 4, "norm_cfg": {"type": "GN", "num_groups": 32}}},
    "head-centernet": {"type": "CenterNetHead", "num_classes": 20, "in_channels": 64, "feat_channels": 64},
    "head-corner": {"type": "CornerHead", "num_classes": 20, "in_channels": 64},
    "head-bbox": {"type": "Shared2FCBBoxHead", "in_channels": 64, "fc_out_channels": 256, "num_classes": 20},
    "head-mask": {"type": "FCNMaskHead", "in_channels": 64, "conv_out_channels": 64, "num_classes": 20},
    "retinanet": {
        "type": "RetinaNet",
        "backbone": {"type": "ResNet", "depth": 18, "frozen_stages": 1, "init_cfg": _PRETRAINED_BACKBONE},
        "neck": {"type": "FPN", "in_channels": _FPN_CHANNELS, "out_channels": 64, "num_outs": 5, "start_level": 1},
        "bbox_head": {"type": "RetinaHead", **_HEAD, "anchor_generator": _ANCHORS},
    },
    "detr": {
        "type": "DETR",
        "num_queries": 20,
        "backbone": {"type": "ResNet", "depth": 18, "init_cfg": None},
        "neck": {"type": "ChannelMapper", "in_channels": [512], "out_channels": 64, "kernel_size": 1, "act_cfg": None,
            "norm_cfg": None, "num_outs": 1},
        "encoder": {"num_layers": 2, "layer_cfg": {"self_attn_cfg": {"embed_dims": 64, "num_heads": 4},
            "ffn_cfg": {"embed_dims": 64, "feedforward_channels": 128}}},
        "decoder": {"num_layers": 2, "return_intermediate": True, "layer_cfg": {
            "self_attn_cfg": {"embed_dims": 64, "num_heads": 4}, "cross_attn_cfg": {"embed_dims": 64, "num_heads": 4},
            "ffn_cfg": {"embed_dims": 64, "feedforward_channels": 128}}},
        "positional_encoding": {"num_feats": 32, "normalize": True},
        "bbox_head": {"type": "DETRHead", "num_classes": 20, "embed_dims": 64},
    },
}  # fmt: skip

_SYNC = {"type": "SyncBN", "requires_grad": True}

SEGMENTATION: dict[str, dict[str, Any]] = {
    "segformer": {
        "type": "EncoderDecoder",
        "backbone": {"type": "MixVisionTransformer", "embed_dims": 32, "num_layers": [2, 2, 2, 2],
            "num_heads": [1, 2, 5, 8], "qkv_bias": True, "drop_path_rate": 0.1},
        "decode_head": {"type": "SegformerHead", "in_channels": [32, 64, 160, 256], "in_index": [0, 1, 2, 3],
            "channels": 256, "num_classes": 19, "norm_cfg": _SYNC},
    },
    "cgnet": {
        "type": "EncoderDecoder",
        "backbone": {"type": "CGNet", "norm_cfg": {**_SYNC, "eps": 1e-3}, "num_blocks": (3, 21)},
        "decode_head": {"type": "FCNHead", "in_channels": 256, "channels": 256, "in_index": 2, "num_convs": 0,
            "concat_input": False, "num_classes": 19, "norm_cfg": {**_SYNC, "eps": 1e-3}},
    },
}  # fmt: skip

POSES: dict[str, dict[str, Any]] = {
    "lite-hrnet": {
        "type": "TopdownPoseEstimator",
        "backbone": {"type": "LiteHRNet", "in_channels": 3, "extra": {
            "stem": {"stem_channels": 32, "out_channels": 32, "expand_ratio": 1},
            "num_stages": 3,
            "stages_spec": {"num_modules": (2, 4, 2), "num_branches": (2, 3, 4), "num_blocks": (2, 2, 2),
                "module_type": ("LITE", "LITE", "LITE"), "with_fuse": (True, True, True), "reduce_ratios": (8, 8, 8),
                "num_channels": ((40, 80), (40, 80, 160), (40, 80, 160, 320))},
            "with_head": True,
        }},
        "head": {"type": "HeatmapHead", "in_channels": 40, "out_channels": 17, "deconv_out_channels": None},
    },
}  # fmt: skip

_WRONG: dict[str, Any] = {
    "wrong-type": {"type": "Kaimng", "layer": "Conv2d"},
    "wrong-argument": {"type": "Normal", "layer": "Conv2d", "sdt": 0.1},
    "wrong-bias": {"type": "Normal", "layer": "Conv2d", "bias": "0"},
    "wrong-prob": {"type": "Normal", "layer": "Conv2d", "bias_prob": 1},
    "wrong-layer": {"type": "Normal", "layer": {"Conv2d": 1}},
    "wrong-override": {"type": "Normal", "layer": "Conv2d", "override": {"name": "fc"}},
    "wrong-override-name": {"type": "Normal", "layer": "Conv2d", "override": {"type": "Normal"}},
    "wrong-file": {"type": "Pretrained", "checkpoint": "no-such-file.pth"},
    "wrong-item": ["Kaiming"],
    "wrong-kind": "Kaiming",
    "no-type": {"layer": "Conv2d"},
    "kaiming-on-norm": {"type": "Kaiming", "layer": ["Conv2d", "BatchNorm2d"]},
}

# A position embedding's init_weights is called by the backbone's own code; MMEngine asks after the backbone only.
_EMBEDDING = "Initialized by user-defined `init_weights` in AbsolutePositionEmbedding  "
INNER_WRITERS = {"det-pvt": {f"layers.{stage}.1.0.pos_embed": _EMBEDDING for stage in range(4)}}

MODELS = (
    *(Case(name, "mmpretrain", config) for name, config in {**_BACKBONES, **_CLASSIFIERS}.items()),
    *(Case(name, "mmdet", config) for name, config in _DETECTION.items()),
    *(Case(name, "mmseg", config) for name, config in SEGMENTATION.items()),
    *(Case(name, "mmpose", config) for name, config in POSES.items()),
)
WRONG = tuple(
    Case(name, "mmpretrain", {"type": "ResNet", "depth": 18, "init_cfg": init_cfg}) for name, init_cfg in _WRONG.items()
)
_WHOLE = {"mae", "detr", "retinanet", *SEGMENTATION, *POSES}
WHOLE = tuple(case for case in MODELS if case.name in _WHOLE or case.name.startswith("classifier-"))
