"""A model for other programs: OpenAI's HTTP interface for one model on this machine.

`engine` answers one request after the other; `requests` says what may be asked; `app` speaks HTTP.
"""
