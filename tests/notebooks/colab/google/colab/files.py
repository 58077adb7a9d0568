"""No browser takes the file."""


def download(path: str) -> None:
    print(f"downloaded {path}")
