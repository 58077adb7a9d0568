"""`newllm bench`: our models beside their peers, in one run on one machine, each figure a row of a CSV.

`speed` times training steps, `decode` times single tokens after short and long histories, `quality` trains everyone on the same
tokens and picks settings on other text than it reports. Peers are small models of our own (`peers`) and transformers' GPT-2.
"""
