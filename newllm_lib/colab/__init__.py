"""Notebooks: forms, live curves, chat, Drive, downloads. Only this package knows Colab and IPython.

| file | one idea |
|---|---|
| `environment` | where are we: Colab, a notebook, a terminal; one-line errors in cells |
| `forms`, `settings` | a recipe as a `#@param` cell, and the cell's values as a recipe again |
| `report` | what this machine is, and what a training will need on it |
| `background` | start a training that outlives its cell, and watch it |
| `history`, `curves`, `live` | read a growing run, draw it, show it while it grows |
| `buttons` | let a Stop button answer while a cell is busy |
| `chat_widget` | talk to a run |
| `phase7`, `mixture` | notebook 5: what fits and what hours buy; which data, by sliders |
| `drive`, `download` | take a run home |
"""
