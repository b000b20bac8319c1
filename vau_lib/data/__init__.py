"""Videos and what is known about them: no torch.

- `video`: frames by their place in presentation order; `records`: a video with its events, the one format used here
- `datasets`: readers of UCF-Crime, XD-Violence, UCSD Ped2 and clip folders, splits by source
- `fetch`: data sets from their official pages; `download`: downloads that resume, archives unpacked without trust
- `hivau`, `hivau_clips`: HIVAU-70k's instructions and its cut-out files; `smarthome`: SmartHome-Bench's files
- `annotation`: from event spans to instructions (captioner, language model, human review)
- `answer_parsing`: what a model's answer says: anomaly or not, an order, a span
"""
