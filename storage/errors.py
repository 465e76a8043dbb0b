"""What storage can fail with. Callers translate these at their own border.

StorageError
├── ObjectMissing       no such key
├── ObjectCorrupt       bytes do not match their digest, length or format
├── ObjectTooLarge      the writer was cut off at its byte limit
├── StorageFull         the disk or bucket takes no more
├── StorageUnavailable  the store does not answer (network, credentials, throttling); may pass
└── DatabaseUnavailable the row store cannot be opened or written
"""


class StorageError(Exception):
    """Base of every failure in this package."""


class ObjectMissing(StorageError):
    """No object has this key."""


class ObjectCorrupt(StorageError):
    """The bytes are not what was promised: digest, length or format."""


class ObjectTooLarge(StorageError):
    """The stream went past the byte limit that the caller set; nothing was kept."""


class StorageFull(StorageError):
    """There is no room left; nothing was kept."""


class StorageUnavailable(StorageError):
    """The store cannot be reached or refuses to work just now."""


class DatabaseUnavailable(StorageError):
    """The row store cannot be opened, or a write did not commit."""


class AlreadyExists(StorageError):
    """The row was not written because another one has the same unique values."""
