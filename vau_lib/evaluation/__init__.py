"""Measuring: every metric's name carries its level, nothing is chosen on test.

- `metrics`: frame and video AUC, AP, bootstrap intervals; `online_metrics`: alarms, delay, causal alignment
- `class_metrics`: AUC and AP by class of anomaly, mean AP of segments (VadCLIP's definition)
- `text_metrics`: BLEU, METEOR, ROUGE, CIDEr; `vlm_metrics`: judgement accuracy; `result_tables`: rows of a results table;
  `atlas`: the four sources' tables and figures, and what is made of them here
- `smarthome_bench`, `smarthome_prompts`: SmartHome-Bench's scores, published rows and prompting styles
"""
