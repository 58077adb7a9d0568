"""Notebooks: forms, live curves, chat, Drive, downloads. Only this package knows Colab and IPython.

| file | one idea |
|---|---|
| `environment` | where are we: Colab, a notebook, a terminal; one-line errors in cells |
| `forms`, `settings` | a recipe as a `#@param` cell, and the cell's values as a recipe again |
| `report` | what this machine is, and what a training will need on it |
| `background` | start a training that outlives its cell, and watch it |
| `form_checks` | what a form's cell finds out in a second |
| `history`, `curves`, `look` | read a growing run, draw it, say how far it is |
| `live`, `live_widgets` | show runs while they grow: as text, or as a picture that a thread draws |
| `pictures` | drawings that follow the notebook's theme and width |
| `results`, `explain` | what came out of a run; what goes on in a model |
| `buttons` | let a Stop button answer while a cell is busy |
| `chat_widget`, `next_token` | talk to a run; what its next token is drawn from |
| `phase7`, `mixture` | notebook 5: what fits and what hours buy; which data, by sliders |
| `drive`, `download` | take a run home |
"""

from newllm_lib.colab.environment import one_line_errors

one_line_errors()  # also in a cell that is run before the one that installs
