"""What users call: `enable`, `disable`, and the handle between them."""

from relcache.api.handle import Handle
from relcache.api.switch import disable, enable, is_enabled

__all__ = ["Handle", "disable", "enable", "is_enabled"]
