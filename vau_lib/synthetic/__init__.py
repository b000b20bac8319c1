"""The synthetic data set, whose ground truth is exact to the pixel, and text-to-video generation.

- `scenarios`: factors and their pairwise coverage; `motion`: who does what; `scenes`, `people`, `objects`: what is painted
- `camera`, `effects`: light, lens, sensor, weather; `dataset`: videos with truth and splits
- `export`: COCO, MOT, questions; `captions`: sentences from truth; `feature_streams`: long drifting feature streams
- `text_to_video`: one interface to the renderer, diffusers models and `veo`; ledger, tracking, review
"""
