"""Vision-language models (InternVL, Qwen2.5-VL): load, ask, fine-tune, reinforce.

- `models`: load and save; `chat`: frames and a question as model inputs; `inference`: generate, explain, accuracy
- `instruction_data`, `finetuning`: instruction rows as samples; LoRA and supervised fine-tuning
- `policy`, `grpo`, `event_order`: sample and score answers; reinforcement by group-relative advantages; shuffled events in order
- `clients`: services and recorded answers behind one call
"""
