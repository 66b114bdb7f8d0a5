"""What the shared options say, for every command of one process."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Settings:
    """`--debug` and `--quiet`."""

    debug: bool = False
    quiet: bool = False


settings = Settings()
