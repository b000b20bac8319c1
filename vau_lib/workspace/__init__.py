"""Running things: no torch, no knowledge of videos.

- `artifacts`: files written whole or not at all, with what made them beside them
- `formats`, `leftovers`: one safe reader for each format; what a killed run left beside its output
- `presets`: notebook parameters and the YAML files that change them
- `notebook_runs`: papermill runs that can be resumed, swept and tabulated
- `timings`: what notebooks take, and what is stated of it
- `saving`: what JupyterLab does after a save
- `gallery`: a page of a run's figures, results and failures
- `parallel`: the same function over many items, serially, in processes or on Ray (`ray_pool`)
- `seeds`: one seed for all generators
- `tracking`: training curves to TensorBoard, Trackio or Weights & Biases
"""
