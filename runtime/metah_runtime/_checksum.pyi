from typing_extensions import Buffer

def crc32c(data: Buffer, crc: int = 0) -> int:
    """CRC-32C of ``data``, continued from ``crc``."""

def crc32c_portable(data: Buffer, crc: int = 0) -> int:
    """The same number by tables alone."""

def crc32c_blocks(data: Buffer, block: int) -> bytearray:
    """CRC-32C of each block of ``block`` bytes, as uint32 in the machine's byte order."""

def backend() -> str:
    """Return ``sse4.2``, ``armv8`` or ``portable``."""
