"""A DentConfig from a file of JSON."""

from pathlib import Path

from dent.config import DentConfig
from dent.errors import ConfigError


def load_config(path: str | Path) -> DentConfig:
    """Read the configuration of a defense.

    Args:
        path: a UTF-8 file holding one JSON object with fields of `DentConfig`; absent fields take
            their defaults.

    Raises:
        ConfigError: the file is missing or unreadable, is not JSON, or holds an unknown key or a
            value out of range. The message names the file.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"There is no configuration file {path} (looked in {path.absolute().parent})."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} expected JSON in UTF-8, got bytes that are not.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        return DentConfig.from_json(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
