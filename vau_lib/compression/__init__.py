"""Smaller and faster models (Memories-S0).

- `token_selection`: which video tokens to keep: ours, EVS, DTD, VidCom2, random; `token_pruning`: a model that reads only those
- `pruning`, `layer_editing`: structured pruning of channels, heads and layers on calibration data
- `low_rank`: data-aware factorisation (SVD-LLM); `distillation`: recover accuracy from the whole model
"""
