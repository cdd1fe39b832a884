"""feeder: exchange WebSocket JSON in, exact order books kept, sequenced binary UDP multicast out.

For who receives that multicast: `from feeder import Listener, events`; docs/receiving.md, listener.py, events.py.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False            # true to type checkers, by its name; typing's own would have to be loaded
if TYPE_CHECKING:
    from feeder.listener import Listener as Listener


def __getattr__(name: str) -> object:
    """Load the library when it is asked for (PEP 562): the command line starts here, too, and has to stay light."""
    if name == "Listener":
        from feeder.listener import Listener
        return Listener
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
