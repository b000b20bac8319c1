"""Tiny models and an easy data set: the course runs on a laptop with no download. Nothing outside this room imports it.

- `tiny_vlm`: InternVL and Qwen2.5-VL at toy width, with a tokenizer; `dataset`: synthetic close-ups of one event each
- `pretraining`: vision, then captions, of a tiny model; `benchmark`: make and measure the models in `data/toy_models`
- `few_layers`: Qwen2.5-VL with few layers, random weights and the real proportions, for measuring what a prompt costs
"""
