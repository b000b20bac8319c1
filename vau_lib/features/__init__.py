"""Encoders of frames: one feature per snippet of 16 frames.

- `xfeat`, `optical_flow`, `image_encoders` (CLIP, SqueezeNet, EfficientNet-Lite0, ten-crop): the encoders
- `frame_features`: one frame in 16 with its visual tokens (Holmes-VAU); `extraction`: whole data sets, resumable
- `released`: CLIP features that others published; `feature_lists`: I3D, C3D and X3D ones; `checkpoints`: weights, loaded safely
"""
