"""Detectors over features, and how they are trained.

- `memtsm`: MemTSM-Net; `lshma`, `lshma_state`, `key_clips`: LSHMA, a stream with memory
- `anomaly_scorer`: Holmes-VAU's scorer (UR-DMU); `frame_sampling`: ATS, its density-aware sampler
- `trained_detector`: train, save and load any of the three; `preprocessing`, `training`: standardised feature sequences, one
  engine on `transformers.Trainer`
- `released_evaluation`: a published LSHMA checkpoint on released features (`vau evaluate`)
- `experiments`: folds, seeds and shuffled labels; `baselines`: what simple methods score
- `stream_profiling`: latency, memory and forgetting of a stream
"""
