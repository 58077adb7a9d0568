"""One of TRL's trainers inside a run's folder, used by its public interface alone.

`run` is the order; `callbacks` logs, evaluates, saves and stops; `arguments` translates the recipe; `base`
prepares the model that training starts from. To add a trainer, fill in the `TrlTask` of `task`, as
`training/preferences/dpo_task.py` does.
"""
