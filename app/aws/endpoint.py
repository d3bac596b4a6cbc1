"""What a client of AWS needs to know of the place it speaks to."""


def certificates(endpoint_url: str | None) -> bool | None:
    """What its `verify` should be: no certificates where nothing is encrypted, as in the emulator.

    A client is made for each call, and to read the world's certificates is most of what it costs.
    """
    return False if endpoint_url and endpoint_url.startswith("http://") else None
