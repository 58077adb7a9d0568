"""Two models on the same text, side by side.

`compare` measures them and says which is better at what; `table` and `picture` show its result as text,
Markdown and a picture.
"""
