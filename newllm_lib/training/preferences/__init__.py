"""Preference training.

`run` is its order, from a recipe to the card; `dpo_task`, `orpo_task` and `kto_task` make TRL's trainers;
`preference_task` prepares the pairs and measures those that are held out. `log`, `curves` and `card` are
what a run writes and says of it.
"""
