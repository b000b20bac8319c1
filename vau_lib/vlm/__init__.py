"""Vision-language models: InternVL and Qwen2.5-VL.

- `models`: load and save; `chat`: frames and a question as model inputs; `inference`: generate, explain, cost
- `instruction_data`, `finetuning`: LoRA and full fine-tuning on instruction rows
- `grpo`, `event_order`: reinforcement with group-relative advantages; putting shuffled events in order
- `clients`: services and recorded answers behind the same call
"""
