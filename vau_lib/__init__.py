"""A workspace for video anomaly understanding: four published systems, one record format, one evaluation.

What a user runs on a video stands here; everything else lives in a room. Imports point down the list, never up.

    cli.py         `vau`, the command line
    cli_models.py  its commands of language models
    analyse.py     one look at a video: the cascade's report as a page, of a file, a folder or a camera
    cascade.py     a trained stream's alarms, explained by a language model as they come
    explain.py     score a video, choose frames, ask a language model about them (Holmes-VAU)
    guard.py       ask a security model about a video, a folder or a records.jsonl (Memories-S0)
    tune.py        tune a model on instruction files, reinforce it by rewards
    watch.py       scores of a trained stream as frames arrive (LSHMA)

    toy/           tiny models and an easy data set, so that the course runs without downloads
    publish/       the course as pages, models on a hub, records and reviews for other tools
    vlm/           vision-language models: load, ask, LoRA fine-tuning, GRPO
    detectors/     MemTSM-Net, LSHMA, Holmes-VAU's anomaly scorer, frame sampling, baselines, training
    synthetic/     the drawn data set with exact truth, and text-to-video generation
    plots/         every figure
    evaluation/    metrics, results tables, SmartHome-Bench
    features/      XFeat, optical flow, CLIP and other encoders; feature extraction; weights
    compression/   video-token selection and pruning, model pruning, low rank, distillation
    data/          videos, records, data sets, HIVAU-70k, annotation, reading a model's answers
    workspace/     files, presets, notebook runs, parallel work
"""

__version__ = "0.1.0"
