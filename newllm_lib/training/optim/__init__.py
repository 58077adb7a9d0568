"""The optimizers.

Begin with `build`, which makes a recipe's optimizer and the course of its learning rate. `muon` steps
matrices of one shape together; `adafactor` and `low_memory_muon` keep few bits a parameter and share
`stochastic_rounding`; `in_backward` steps each parameter while the backward pass goes on; `combined` makes
several optimizers one.
"""
