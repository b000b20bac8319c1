"""Every figure of the notebooks; each function returns a matplotlib Figure.

- `style`: colours, fonts, saving; `timeline`: scores over time; `filmstrip`: frames, kept tokens, tracks
- `curves`: training, ROC and PR, lines; `ranking`: bars with intervals; `distributions`: histograms, seeds
- `confusion`: confusion matrix, heat map; `frontier`: size against accuracy
"""
