"""Smaller and faster models: pruning of video tokens and of weights (Memories-S0).

- `token_selection`: which video tokens to keep (ours, EVS, DTD, VidCom², random); `token_pruning`: a model that reads only those;
  `prefill`: what that saves in tokens, seconds and bytes
- `pruning`: structured pruning of channels, heads and layers on calibration data, and factorisation; `layer_editing`: its tools
- `low_rank`: data-aware factors of a weight and ranks (SVD-LLM); `distillation`: the whole model teaches the smaller one
"""
