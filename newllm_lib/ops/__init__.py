"""Operations: each a folder with a plain reference, faster versions, and an `__init__` that chooses."""
