"""Small foreign configs, written for these tests in the styles that users have."""

from __future__ import annotations

import pathlib

# ---- MMSegmentation 1.x ----------------------------------------------------------------------------------------------

RUNTIME_1X = """
default_scope = 'mmseg'
env_cfg = dict(cudnn_benchmark=True, dist_cfg=dict(backend='nccl'))
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_level = 'INFO'
load_from = None
resume = False
tta_model = dict(type='SegTTAModel')
"""

ADE_1X = """
root = 'data/ade/ADEChallengeData2016'
crop = (512, 512)
scale = (4 * crop[0], crop[1])
train_steps = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomResize', scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs')]
test_steps = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs')]
tta_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale_factor=r, keep_ratio=True) for r in [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]],
        [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0., 1.)],
        [dict(type='LoadAnnotations')], [dict(type='PackSegInputs')]])]
train_dataloader = dict(
    batch_size=4, num_workers=4, persistent_workers=True, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='ADE20KDataset', data_root=root, pipeline=train_steps,
                 data_prefix=dict(img_path='images/training', seg_map_path='annotations/training')))
val_dataloader = dict(
    batch_size=1, num_workers=4, persistent_workers=True, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='ADE20KDataset', data_root=root, pipeline=test_steps,
                 data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation')))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
"""

SCHEDULE_1X = """
optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0005)
optim_wrapper = dict(type='OptimWrapper', optimizer=optimizer, clip_grad=None)
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=160000, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=16000, max_keep_ckpts=2))
"""

TINY_1X = """
_base_ = ['_base_/runtime.py', '_base_/schedule.py', '_base_/ade20k.py']
weights = f'https://example.invalid/mscan_{"t"}.pth'
ham_norm = dict(type='GN', num_groups=32, requires_grad=True)
data_preprocessor = dict(
    type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
    pad_val=0, seg_pad_val=255, size=(512, 512), test_cfg=dict(size_divisor=32))
model = dict(
    type='EncoderDecoder', data_preprocessor=data_preprocessor, pretrained=None,
    backbone=dict(
        type='MSCAN', init_cfg=dict(type='Pretrained', checkpoint=weights),
        embed_dims=[32, 64, 160, 256], mlp_ratios=[8, 8, 4, 4], drop_rate=0.0, drop_path_rate=0.1, depths=[3, 3, 5, 2],
        attention_kernel_sizes=[5, [1, 7], [1, 11], [1, 21]], attention_kernel_paddings=[2, [0, 3], [0, 5], [0, 10]],
        act_cfg=dict(type='GELU'), norm_cfg=dict(type='BN', requires_grad=True)),
    decode_head=dict(
        type='LightHamHead', in_channels=[64, 160, 256], in_index=[1, 2, 3], channels=256, ham_channels=256,
        dropout_ratio=0.1, num_classes=150, norm_cfg=ham_norm, align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        ham_kwargs=dict(MD_S=1, MD_R=16, train_steps=6, eval_steps=7, inv_t=100, rand_init=True)),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    _delete_=True, type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.00006, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(custom_keys={
        'pos_block': dict(decay_mult=0.), 'norm': dict(decay_mult=0.), 'head': dict(lr_mult=10.)}))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, begin=1500, end=160000, eta_min=0.0, by_epoch=False)]
"""

LARGER_1X = """
_base_ = './tiny.py'
model = dict(
    backbone=dict(embed_dims=[64, 128, 320, 512], depths={depths}, drop_path_rate={drop_path}),
    decode_head=dict(in_channels=[128, 320, 512], channels={width}, ham_channels={width}))
"""

TREE_1X = {
    "_base_/runtime.py": RUNTIME_1X, "_base_/ade20k.py": ADE_1X, "_base_/schedule.py": SCHEDULE_1X,
    "tiny.py": TINY_1X,
    "small.py": LARGER_1X.format(depths=[2, 2, 4, 2], drop_path=0.1, width=256),
    "base.py": LARGER_1X.format(depths=[3, 3, 12, 3], drop_path=0.1, width=512),
    "large.py": LARGER_1X.format(depths=[3, 5, 27, 3], drop_path=0.3, width=1024),
}

LAZY = {
    "_base_/parts.py": """
from mmengine.optim import PolyLR
rate = 0.5
hidden = PolyLR
schedule = dict(type=PolyLR, power=1.0)
""",
    "net/lazy.py": """
from mmengine.config import read_base
from mmseg.models import EncoderDecoder
import mmseg.models.losses as losses

with read_base():
    from .._base_.parts import *
    from .._base_.parts import rate as same_rate

schedule.update(dict(eta_min=0.0))
model = dict(type=EncoderDecoder, head=dict(loss=dict(type=losses.CrossEntropyLoss), dropout=rate / 5))
model.merge(dict(head=dict(dropout=same_rate)))
""",
}

# ---- MMSegmentation 0.x, as the SegNeXt authors write it -------------------------------------------------------------

AUTHORS_BASE = """
norm = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
crop = (512, 512)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='Resize', img_scale=(2048, 512), ratio_range=(0.5, 2.0)),
    dict(type='RandomCrop', crop_size=crop, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='Normalize', **norm),
    dict(type='Pad', size=crop, pad_val=0, seg_pad_val=255),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_semantic_seg'])]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(2048, 512), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True),
        dict(type='ResizeToMultiple', size_divisor=32),
        dict(type='RandomFlip'),
        dict(type='Normalize', **norm),
        dict(type='ImageToTensor', keys=['img']),
        dict(type='Collect', keys=['img'])])]
places = dict(type='ADE20KDataset', data_root='/somewhere/ADEChallengeData2016')
held_out = dict(img_dir='images/validation', ann_dir='annotations/validation', pipeline=test_pipeline, **places)
data = dict(
    samples_per_gpu=4, workers_per_gpu=4,
    train=dict(type='RepeatDataset', times=50, dataset=dict(
        img_dir='images/training', ann_dir='annotations/training', pipeline=train_pipeline, **places)),
    val=held_out, test=held_out)
model = dict(
    type='EncoderDecoder',
    backbone=dict(type='MSCAN', embed_dims=[64, 128, 320, 512], mlp_ratios=[8, 8, 4, 4], drop_rate=0.0,
                  drop_path_rate=0.1, depths=[3, 3, 12, 3], norm_cfg=dict(type='SyncBN', requires_grad=True),
                  init_cfg=dict(type='Pretrained', checkpoint='pretrained/mscan_b.pth')),
    decode_head=dict(type='LightHamHead', in_channels=[128, 320, 512], in_index=[1, 2, 3], channels=512,
                     ham_channels=512, dropout_ratio=0.1, num_classes=150,
                     norm_cfg=dict(type='GN', num_groups=32, requires_grad=True), align_corners=False,
                     loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
evaluation = dict(interval=8000, metric='mIoU', pre_eval=True)
checkpoint_config = dict(by_epoch=False, interval=8000)
log_config = dict(interval=50, hooks=[dict(type='TextLoggerHook', by_epoch=False)])
optimizer = dict(type='AdamW', lr=0.00006, betas=(0.9, 0.999), weight_decay=0.01, paramwise_cfg=dict(
    custom_keys={'pos_block': dict(decay_mult=0.), 'norm': dict(decay_mult=0.), 'head': dict(lr_mult=10.)}))
optimizer_config = dict()
lr_config = dict(policy='poly', warmup='linear', warmup_iters=1500, warmup_ratio=1e-6, power=1.0, min_lr=0.0,
                 by_epoch=False)
runner = dict(type='IterBasedRunner', max_iters=160000)
find_unused_parameters = True
"""

# ---- original JSeg ---------------------------------------------------------------------------------------------------

JSEG = """
norm = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
crop = (1024, 1024)
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
    dict(type='Resize', img_scale=(2048, 1024), ratio_range=(0.5, 2.0)),
    dict(type='RandomCrop', crop_size=crop, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5), dict(type='PhotoMetricDistortion'), dict(type='Normalize', **norm),
    dict(type='Pad', size=crop, pad_val=0, seg_pad_val=255), dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_semantic_seg'])]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(2048, 1024), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'), dict(type='Normalize', **norm),
        dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])])]
dataset = dict(
    train=dict(type='CityscapesDataset', batch_size=8, num_workers=8, shuffle=True, drop_last=False,
               data_root='datasets/cityscapes/', img_dir='leftImg8bit/train', ann_dir='gtFine/train',
               pipeline=train_pipeline),
    val=dict(type='CityscapesDataset', batch_size=1, num_workers=1, shuffle=False, drop_last=False,
             data_root='datasets/cityscapes/', img_dir='leftImg8bit/val', ann_dir='gtFine/val', pipeline=test_pipeline))
model = dict(
    type='EncoderDecoder', pretrained='jittorhub://mscan_b.pkl',
    backbone=dict(type='MSCAN', embed_dims=[64, 128, 320, 512], mlp_ratios=[8, 8, 4, 4], drop_rate=0.0,
                  drop_path_rate=0.2, depths=[3, 3, 12, 3]),
    decode_head=dict(type='LightHamHead', in_channels=[128, 320, 512], in_index=[1, 2, 3], channels=512,
                     dropout_ratio=0.1, num_classes=19, norm_cfg=dict(type='GN', num_groups=32), align_corners=False,
                     ham_channels=512, ham_kwargs=dict(MD_D=512, TRAIN_STEPS=5),
                     loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    train_cfg=dict(), test_cfg=dict(mode='slide', crop_size=(1024, 1024), stride=(768, 768)))
parameter_groups_generator = dict(type='CustomPrameterGroupsGenerator', custom_keys={
    'pos_block': dict(decay_mult=0.), 'norm': dict(decay_mult=0.), 'head': dict(lr_mult=10.)})
optimizer = dict(type='CustomAdamW', lr=0.00006, betas=(0.9, 0.999), weight_decay=0.01)
max_iter = 160000
eval_interval = 8000
checkpoint_interval = 8000
log_interval = 50
scheduler = dict(type='PolyLR', warmup='linear', warmup_iters=1500, warmup_ratio=1e-6, max_steps=max_iter, power=1.0,
                 min_lr=0)
logger = dict(type='RunLogger')
"""


def plant(folder: pathlib.Path, tree: dict[str, str]) -> pathlib.Path:
    """Write files into a folder and return it."""
    for name, text in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder
