"""What leaves the workspace: the course as pages, models on a hub, records and reviews for other tools.

badges.py     links that open a notebook elsewhere (Colab, Kaggle)
book.py       a static site of a preset's executed notebooks (extra `book`)
commands.py   `vau badges`, `vau book`, `vau push`, `vau pull`, `vau exchange`
exchange.py   Label Studio and FiftyOne JSON
hub.py        models and feature sets to and from the Hugging Face hub, with a model card
"""
