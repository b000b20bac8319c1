"""Tiny models and an easy data set: the course runs on a laptop with no download. Nothing outside this room imports it.

- `tiny_vlm`: InternVL and Qwen2.5-VL at toy width, with a tokenizer; `dataset`: drawn close-ups of one event each
- `pretraining`: teach a tiny model's vision tower and captions; `benchmark`: make and measure the models in `data/toy_models`
"""
