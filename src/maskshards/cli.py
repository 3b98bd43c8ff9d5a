"""The command `maskshards`."""


def main() -> int:
    return 0
